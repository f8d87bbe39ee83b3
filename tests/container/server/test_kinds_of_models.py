"""Models of each kind behind a real server: an engine killed, then the server, and a cache that is too small."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoModelForCausalLM

from testing.model_zoo import tiny_checkpoint
from testing.server import Server, eventually

KINDS = {  # what each asks of the engine
    "gpt_oss": "attention sinks and windows",
    "qwen3_5_text": "delta rule and full attention in turns",
    "mamba2": "no attention at all",
}
TOKENS = 60
CACHE_TOKENS = 384
"""Size of the cache: about half of what all sequences need at their ends."""
WAYS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.9, "seed": 7},
    {"temperature": 0.7, "seed": 5, "n": 2, "top_p": 0.9},
    {"temperature": 0, "logprobs": 1},
]
LINES = [
    way | {"prompt": f"{word} and the {number} " * 3, "max_tokens": TOKENS, "ignore_eos": True}
    for number, way in enumerate(WAYS)
    for word in ("The sea", "A house")
]
BODY = "".join(json.dumps(line) + "\n" for line in LINES)


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path: Path, model_dir: str) -> Path:
    """Return a tiny random model of a kind, with a real tokenizer."""
    tokens = {"vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    directory = tmp_path / request.param
    tiny_checkpoint(AutoModelForCausalLM, request.param, directory, **tokens)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(Path(model_dir, name), directory)
    return directory


def send_soon(server: Server, blank_lines: int = 0) -> Future[httpx.Response]:
    """Send the lines; blank ones behind them make another job of them."""
    body = BODY + "\n" * blank_lines
    return server.post_soon(content=body, headers={"content-type": "application/jsonlines"})


def texts(answer: Future[httpx.Response]) -> list[list[str]]:
    response = answer.result()
    assert response.status_code == 200, response.text
    answers = [json.loads(line) for line in response.text.splitlines()]
    return [[choice["text"] for choice in answer["choices"]] for answer in answers]


def wait_for_tokens(server: Server, tokens: int) -> None:
    eventually(lambda: server.metric("longhaul_generation_tokens_total") >= tokens)


def test_killed_engine_and_server_change_nothing(start: Callable[..., Server], model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"LONGHAUL_CHECKPOINT_URI": tmp_path / "journal", "LONGHAUL_CHECKPOINT_INTERVAL_S": 0.1}
    settings |= {"LONGHAUL_MAX_MODEL_LEN": 512}  # a model without attention tells no length
    server = start(model, **settings).wait_until_ready()
    undisturbed = texts(send_soon(server))
    tokens = int(server.metric("longhaul_generation_tokens_total"))
    assert tokens == 10 * TOKENS and len({text for line in undisturbed for text in line}) == 10
    disturbed = send_soon(server, 1)
    wait_for_tokens(server, tokens * 5 // 4)
    server.kill_engine()
    wait_for_tokens(server, tokens * 7 // 4)
    server.send(signal.SIGKILL)
    server.exit_status()
    with pytest.raises(httpx.TransportError):
        disturbed.result()
    successor = start(model, LONGHAUL_KV_CACHE_TOKENS=CACHE_TOKENS, **settings).wait_until_ready()
    resumed = send_soon(successor, 1)
    assert texts(resumed) == undisturbed
    assert int(resumed.result().headers["x-longhaul-resumed-tokens"]) > tokens // 2
