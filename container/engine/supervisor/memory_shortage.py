"""Shortage of memory: whether an engine died of it, and with how much less the next one starts."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import msgspec

from container.engine.messages import EngineConfig, EngineInfo

MIN_BATCH_TOKENS = 64  # smaller steps save next to nothing
MIN_CACHE_TOKENS = 64

_WORDS = re.compile(r"out ?of ?memory|memoryerror|(can't|cannot|unable to) allocate|not enough memory", re.IGNORECASE)


def oom_kills(root: Path = Path("/")) -> int | None:
    """Return how many processes the kernel has killed for lack of memory; None where nothing counts them.

    They are counted in this container if its control group does so, else on the whole machine.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.events), cgroup-v1/memory.html (memory.oom_control).
    """
    groups = root / "sys/fs/cgroup"
    try:
        own = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        own = []
    counters = []
    for _, controllers, path in own:
        if controllers == "":
            counters.append(groups / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            counters.append(groups / "memory" / path.lstrip("/") / "memory.oom_control")
    # In a namespace of its own a container sees its group as the root.
    counters += [groups / "memory.events", groups / "memory" / "memory.oom_control", root / "proc/vmstat"]
    for file in counters:
        try:
            counter = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
        except OSError:
            continue
        if counter:
            return int(counter[1])
    return None


def is_shortage(last_words: str | None, status: int, kills_before: int | None, kills: int | None) -> bool:
    """Tell whether an engine with these last words, or else this exit status, died of a shortage of memory.

    Where nothing counts the kernel's kills, a SIGKILL that this process has not sent is taken for one of them.
    """
    if last_words is not None:
        return _WORDS.search(last_words) is not None
    counted = kills_before is None or kills is None or kills > kills_before
    return status == -signal.SIGKILL and counted


def smaller(
    config: EngineConfig, info: EngineInfo | None, *, was_at_work: bool, needed_tokens: int
) -> EngineConfig | None:
    """Return the next engine's configuration, or None if nothing can be made smaller.

    At work, what grows is a step: it is halved first, then the cache. An engine that could not even start lacks the
    memory for its cache. `needed_tokens` is the longest unfinished sequence's limit: the cache keeps room for it.
    `info` is the last engine's, if one ever started; it tells the sizes that the settings leave open.
    """
    step = config.max_batch_tokens or (info and info.max_batch_tokens)
    cache = config.kv_cache_tokens or (info and info.kv_cache_tokens)
    if was_at_work and step and step > MIN_BATCH_TOKENS:
        return msgspec.structs.replace(config, max_batch_tokens=max(MIN_BATCH_TOKENS, step // 2), kv_cache_tokens=cache)
    least = MIN_CACHE_TOKENS * max(1, -(-needed_tokens // MIN_CACHE_TOKENS))
    if cache and cache > least:
        return msgspec.structs.replace(config, kv_cache_tokens=max(least, cache // 2))
    return None
