from __future__ import annotations

import signal
from pathlib import Path

import pytest

from container.engine.messages import EngineConfig
from container.engine.supervisor.memory_shortage import is_shortage, oom_kills, smaller

KILLED, ABORTED = -signal.SIGKILL, -signal.SIGABRT


@pytest.mark.parametrize(
    ("last_words", "status", "before", "after", "ran_out"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", 1, 0, 0, True),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", 1, 0, 0, True),
        ("MemoryError: ", 1, 0, 0, True),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", 1, 0, 0, False),
        ("no step for 120 s with 3 sequences in flight", KILLED, None, None, False),
        (None, KILLED, 3, 4, True),
        (None, KILLED, 3, 3, False),
        (None, KILLED, None, None, True),
        (None, ABORTED, 3, 4, False),
    ],
)
def test_which_deaths_are_memory_shortages(
    last_words: str | None, status: int, before: int | None, after: int | None, ran_out: bool
) -> None:
    assert is_shortage(last_words, status, before, after) is ran_out


@pytest.mark.parametrize(
    ("groups", "counter", "text"),
    [
        ("0::/a/b", "sys/fs/cgroup/a/b/memory.events", "oom 9\noom_kill 5\noom_group_kill 0\n"),
        ("0::/a/b", "sys/fs/cgroup/memory.events", "oom_kill 5\n"),
        ("4:cpu,memory:/a\n0::/", "sys/fs/cgroup/memory/a/memory.oom_control", "under_oom 0\noom_kill 5\n"),
        ("0::/", "proc/vmstat", "nr_free_pages 8\noom_kill 5\n"),
    ],
    ids=["cgroup 2", "cgroup 2 in a namespace", "cgroup 1", "the whole machine"],
)
def test_oom_kills_are_read_from_each_source(tmp_path: Path, groups: str, counter: str, text: str) -> None:
    for path, content in (("proc/self/cgroup", groups + "\n"), (counter, text)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    assert oom_kills(tmp_path) == 5


def test_oom_kills_without_source_are_unknown(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) is None


def test_at_work_step_shrinks_before_cache() -> None:
    config: EngineConfig | None = EngineConfig(model_dir="", max_batch_tokens=200, kv_cache_tokens=1000)
    sizes = []
    while config is not None:
        sizes.append((config.max_batch_tokens, config.kv_cache_tokens))
        config = smaller(config, None, was_at_work=True, needed_tokens=200)
    assert sizes == [(200, 1000), (100, 1000), (64, 1000), (64, 500), (64, 256)]


def test_failed_start_shrinks_the_cache() -> None:
    config = EngineConfig(model_dir="", max_batch_tokens=200, kv_cache_tokens=1000)
    less = smaller(config, None, was_at_work=False, needed_tokens=0)
    assert less is not None and (less.max_batch_tokens, less.kv_cache_tokens) == (200, 500)


def test_engine_of_unknown_size_cannot_shrink() -> None:
    assert smaller(EngineConfig(model_dir=""), None, was_at_work=False, needed_tokens=0) is None
