"""Behaviour of a real server on the device: an engine that is killed, and one that runs out of GPU memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from testing.server import Server, eventually
from testing.tiny_models import VOCABULARY, save_tiny_family

from .engine import make_prompts
from .random_model import save_words
from .settings import NotHere, Settings

_LIMIT_S = 60.0
_TOKENS = 256  # so many that a quick GPU is still at work when the engine is killed
# Takes all memory of the GPU but what the argument says, in MiB, until it is ended.
_HOG = """
import sys, time, torch
torch.ones(1, device="cuda")
held = []
size = 1 << 30
while size >= 1 << 20:
    if torch.cuda.mem_get_info()[0] - size < int(sys.argv[1]) << 20:
        size //= 2
        continue
    try:
        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.cuda.OutOfMemoryError:
        size //= 2
print("held", flush=True)
time.sleep(600)
"""


def run(settings: Settings, what: str) -> dict[str, Any]:
    return {"killed": _killed, "out of memory": _out_of_memory}[what](settings)


def _killed(settings: Settings) -> dict[str, Any]:
    """Kill the engine amid greedy and seeded requests. The answers must be those of an undisturbed run.

    On a GPU one may differ: other rows beside it round its sums otherwise.
    """
    lines = [
        {"prompt": prompt, "max_tokens": _TOKENS, "ignore_eos": True, "temperature": heat, "seed": row}
        for row, prompt in enumerate(make_prompts(settings.compared_rows, 20, VOCABULARY))
        for heat in (0, 0.8)
    ]
    with _server(settings, "killed") as server:
        server.wait_until_ready()
        expected = _texts(server.ask_lines([*lines]))
        before = server.metric("longhaul_generation_tokens_total")
        # Another job, so that nothing of it comes from the journal: one line more.
        asked = server.post_soon(content=_lines([*lines, lines[0]]), headers={"content-type": "application/jsonlines"})
        some = len(lines) * _TOKENS // 4
        eventually(lambda: server.metric("longhaul_generation_tokens_total") >= before + some, _LIMIT_S)
        server.kill_engine()
        killed = time.monotonic()
        dead_at = server.metric("longhaul_generation_tokens_total")
        eventually(lambda: server.metric("longhaul_generation_tokens_total") > dead_at, _LIMIT_S)
        next_token_s = time.monotonic() - killed
        answer = asked.result()
        assert answer.status_code == 200, answer.text
        got = _texts([json.loads(line) for line in answer.text.splitlines()])[: len(lines)]
        restarts = server.metric("longhaul_engine_restarts_total")
    equal = sum(a == b for a, b in zip(expected, got, strict=True))
    figures = {"answers": len(lines), "equal": equal, "restarts": restarts, "kill_to_next_token_s": next_token_s}
    assert restarts >= 1, figures
    assert equal >= len(lines) - settings.is_cuda, figures
    return figures


def _out_of_memory(settings: Settings) -> dict[str, Any]:
    """Take the GPU's memory away from a running engine: it must come back smaller and finish the request."""
    if not settings.is_cuda:
        raise NotHere("a CPU's memory is not taken away: the other users of the machine would suffer")
    request = {
        "prompt": make_prompts(1, 4000, VOCABULARY)[0],
        "max_tokens": 64,
        "ignore_eos": True,
        "temperature": 0,
    }
    # Scores in float32 of long pieces, so that a step needs far more than what is left to it.
    sizes = {"LONGHAUL_MAX_BATCH_TOKENS": 4096, "LONGHAUL_KV_CACHE_TOKENS": 16384}
    with _server(settings, "short", max_position_embeddings=8192, intermediate_size=65536, **sizes) as server:
        server.wait_until_ready()
        hog = subprocess.Popen([sys.executable, "-c", _HOG, "64"], stdout=subprocess.PIPE, text=True)
        try:
            assert hog.stdout is not None and hog.stdout.readline() == "held\n", "the memory could not be taken"
            asked = server.post_soon(json=request)
            eventually(lambda: server.metric("longhaul_engine_restarts_total") >= 1 or asked.done(), _LIMIT_S)
        finally:
            hog.kill()
            hog.wait()
        answer = asked.result()
        assert answer.status_code == 200, answer.text
        restarts = server.metric("longhaul_engine_restarts_total")
        again = server.ask(request)
    if not restarts:
        raise NotHere("what was left was enough: nothing ran out of memory")
    assert answer.json()["choices"][0]["text"] == again["choices"][0]["text"], "another text after the shortage"
    return {"restarts": restarts}


def _server(settings: Settings, name: str, **changes: Any) -> Server:
    own = {key: changes.pop(key) for key in [*changes] if key.startswith("LONGHAUL_")}
    folder = Path(settings.folder) / name
    directory = save_tiny_family(folder, "llama", **changes)
    save_words(folder, VOCABULARY)
    environment: dict[str, Any] = {**settings.server, **own, "LONGHAUL_DTYPE": "float32"}
    return Server(directory, folder / "log", **environment)


def _lines(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _texts(answers: list[Any]) -> list[str]:
    return [answer["choices"][0]["text"] for answer in answers]
