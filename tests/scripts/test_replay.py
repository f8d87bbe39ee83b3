from __future__ import annotations

import json
import secrets
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from testing import ROOT
from testing.loopback import Answer, Loopback


def replay(*arguments: str | Path) -> tuple[int, str]:
    """Run `scripts/replay` with the tests' Python; return its status and output."""
    command = [sys.executable, ROOT / "scripts/replay.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout


class Server(Loopback):
    """Answers every request with one completion, under a new id each time."""

    def __init__(self, text: str = "wide", *, logprob: float = -0.5, seed: object = 7) -> None:
        def answer(request: BaseHTTPRequestHandler) -> Answer:
            choice = {"text": text, "logprobs": {"token_logprobs": [logprob]}, "seed": seed}
            document = {"id": f"cmpl-{secrets.token_hex(12)}", "created": secrets.randbelow(10**9), "choices": [choice]}
            return 200, "application/json", json.dumps(document, separators=(",", ":")).encode()

        super().__init__(answer)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    with Server() as server:
        assert replay("record", tmp_path / "recording", server.url, "--only", "completion, seed")[0] == 0
    return tmp_path / "recording"


@pytest.mark.parametrize("logprob", [-0.5, -0.50001], ids=["ids and times", "rounding"])
def test_same_text_is_no_difference(recording: Path, logprob: float) -> None:
    with Server(logprob=logprob) as server:
        status, output = replay("compare", recording, server.url, "--only", "completion, seed")
    assert (status, "2 answers compared: 0 differ" in output) == (0, True)


def test_another_text_is_told(recording: Path) -> None:
    with Server("deep") as server:
        status, output = replay("compare", recording, server.url, "--only", "completion, seed")
    assert status == 1
    assert "completion, seeded\n" in output and "wide" in output and "deep" in output


def test_unseeded_text_counts_by_its_shape(tmp_path: Path) -> None:
    file, only = tmp_path / "recording", ("--only", "completion, unseeded")
    with Server() as server:
        replay("record", file, server.url, *only)
    with Server("deep", seed=8) as server:
        assert replay("compare", file, server.url, *only)[0] == 0
    with Server("deep", seed=None) as server:
        assert replay("compare", file, server.url, *only)[0] == 1


def test_replay_has_many_requests() -> None:
    names = replay("list")[1].splitlines()
    assert len(names) == len(set(names)) > 120
