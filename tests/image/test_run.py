"""The container with the users, the limits and the signals of its platform."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from testing.docker_container import PYTHON, READ_ONLY, Container, docker

Run = Callable[..., Container]


def test_real_model_serves_every_dialect(run: Run, real_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    container = run(real_model)
    seconds = container.wait_until_ready()
    with capsys.disabled():
        print(f"\nfrom `docker run` to /ping 200 with the small model: {seconds:.1f} s")
    question = {"role": "user", "content": "What is the capital of France? One word."}

    chat = container.ask("POST", "/invocations", {"messages": [question], "max_tokens": 12, "temperature": 0})
    assert "Paris" in chat.json["choices"][0]["message"]["content"]
    huggingface = container.ask("POST", "/invocations", {"inputs": ["The sea is", "The sky is"]} | _FEW)
    assert [bool(item["generated_text"]) for item in huggingface.json] == [True, True]
    text = container.ask(
        "POST",
        "/invocations",
        "Once upon a time",
        {"Content-Type": "text/plain", "X-Amzn-SageMaker-Custom-Attributes": "max_new_tokens=8"},
    )
    assert text.status == 200 and text.text
    lines = [{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi", "max_tokens": 4}}]
    batch = container.ask(
        "POST", "/invocations", json.dumps(lines[0]) + "\n{}\n", {"Content-Type": "application/jsonlines"}
    )
    good, bad = (json.loads(line) for line in batch.text.splitlines())
    assert good["response"]["status_code"] == 200 and "error" in bad
    for answer in (chat, huggingface, text, batch):
        assert answer.headers["content-length"] == str(len(answer.text.encode()))


_FEW = {"parameters": {"max_new_tokens": 8}}


@pytest.mark.parametrize("user", ["0:0", "10001:0", "54321:54321"])
def test_any_user_serves_on_read_only_root(run: Run, model: Path, user: str) -> None:
    container = run(model, f"--user={user}", *READ_ONLY)
    container.wait_until_ready()
    lines = "".join(json.dumps({"inputs": f"Document {number}"} | _FEW) + "\n" for number in range(40))
    answer = container.ask("POST", "/invocations", lines, {"Content-Type": "application/jsonlines"})  # spooled
    assert answer.status == 200
    assert sum("generated_text" in line for line in answer.text.splitlines()) == 40
    assert "Traceback" not in container.log() and "WARNING" not in container.log()
    assert container.stop() < 10 and container.exit_code == 0


def test_large_document_works_on_read_only_root(run: Run, model: Path) -> None:
    container = run(model, "--user=10001:0", *READ_ONLY)
    container.wait_until_ready()
    document = {"inputs": ["word " * 60] * 6000, "parameters": {"max_new_tokens": 1}}
    assert len(json.dumps(document)) > 1 << 20  # large enough for a reader process
    answer = container.ask("POST", "/invocations", document)
    assert answer.status == 200 and len(answer.json) == 6000


def test_unreadable_model_is_named(run: Run, model: Path, tmp_path: Path) -> None:
    closed = tmp_path / "model"
    docker("version")
    closed.mkdir()
    for path in model.iterdir():
        (closed / path.name).write_bytes(path.read_bytes())
        (closed / path.name).chmod(0o600 if path.suffix == ".safetensors" else 0o644)
    for directory in (closed, *closed.parents):
        if directory.is_relative_to(tmp_path.parents[1]):
            directory.chmod(0o755)
    container = run(closed, "--user=10001:0")
    assert container.wait() == 1
    (line,) = (json.loads(line) for line in container.log().splitlines())
    assert "model.safetensors" in line["message"] and "10001" in line["message"]


def test_bad_setting_ends_with_one_line(run: Run, model: Path) -> None:
    container = run(model, "--env=LONGHAUL_MAX_NEW_TOKEN=5")
    assert container.wait() == 1
    (line,) = (json.loads(line) for line in container.log().splitlines())
    assert "LONGHAUL_MAX_NEW_TOKEN" in line["message"]


# SIGTERM: the kernel drops it while process 1 has no handler


def test_sigterm_during_start_exits_0(run: Run, model: Path) -> None:
    container = run(model)  # Python is still starting or importing
    assert container.stop() < 10
    assert container.exit_code == 0


def test_sigterm_while_engine_loads_exits_0(run: Run, real_model: Path) -> None:
    container = run(real_model)
    container.wait_for_log("engine_start")
    assert container.stop() < 10
    assert container.exit_code == 0


def test_sigterm_under_load_finishes_requests(run: Run, model: Path) -> None:
    container = run(model)
    container.wait_until_ready()
    answers = []
    body = {"inputs": ["The sea is"] * 16, "parameters": {"max_new_tokens": 400}}

    def ask() -> None:
        answers.append(container.ask("POST", "/invocations", body))

    client = threading.Thread(target=ask)
    client.start()
    while "longhaul_sequences_running 16" not in container.ask("GET", "/metrics").text:
        assert client.is_alive(), "answered before it could be disturbed"
    assert container.stop() < 30
    client.join()
    assert container.exit_code == 0 and not container.state["OOMKilled"]
    assert [answer.status for answer in answers] == [200]


def test_killed_engine_is_replaced_without_zombie(run: Run, model: Path) -> None:
    container = run(model)
    container.wait_until_ready()
    container.run(PYTHON, "-c", _KILL_ENGINE)
    container.wait_for_log("engine_died")
    while container.ask("GET", "/ping").json["status"] != "ready":
        pass
    assert container.ask("POST", "/invocations", {"inputs": "Hello"} | _FEW).status == 200
    assert container.run(PYTHON, "-c", _ZOMBIES).split() == []


_KILL_ENGINE = """
import os, psutil, signal
(engine,) = [process for process in psutil.process_iter() if process.cmdline()[:1] == ["longhaul-engine"]]
engine.send_signal(signal.SIGKILL)
"""
_ZOMBIES = """
import psutil
print(*(process.pid for process in psutil.process_iter() if process.status() == psutil.STATUS_ZOMBIE))
"""
