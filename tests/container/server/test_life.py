"""The server from its first connection to its exit status, through every kind of failure."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from testing import ROOT
from testing.server import Server, endless, eventually, free_port, lasting

Start = Callable[..., Server]

SHORT = {"inputs": "The sea is", "parameters": {"max_new_tokens": 3}}


def codes(responses: list[httpx.Response]) -> set[tuple[int, str]]:
    """Return the status and error code of each answer."""
    return {(response.status_code, response.json()["error"]["code"]) for response in responses}


def actions(server: Server) -> list[object]:
    return [line.get("action") for line in server.log_lines()]


# Starting


@dataclass
class Childhood:
    """Holds a server and the answers that it gave before it was ready."""

    server: Server
    pings: list[tuple[int, dict[str, Any]]]
    early: httpx.Response


@pytest.fixture(scope="module")
def childhood(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Childhood]:
    with Server(tiny_model_dir, tmp_path_factory.mktemp("child") / "log") as server:
        first = eventually(lambda: (ping := server.ping())[0] and ping)  # the first that is not refused
        early = server.post(json=SHORT)
        server.wait_until_ready()
        yield Childhood(server, [first, server.ping()], early)


def test_ping_answers_503_until_model_is_ready(childhood: Childhood) -> None:
    starting = {"status": "starting", "reason": "the model is being loaded"}
    assert childhood.pings == [(503, starting), (200, {"status": "ready", "reason": None})]


def test_request_before_ready_gives_503(childhood: Childhood) -> None:
    assert codes([childhood.early]) == {(503, "starting")}


def test_sigterm_while_idle_exits_0(childhood: Childhood) -> None:
    engine = childhood.server.engine
    assert engine is not None
    childhood.server.send(signal.SIGTERM)
    assert childhood.server.exit_status() == 0
    assert not engine.is_running()


def refusal(server: Server) -> str:
    """Return the only log line of a server that exits at once with status 1."""
    assert server.exit_status() == 1
    (line,) = [line for line in server.log_lines() if line["level"] == "ERROR"]
    message: str = line["message"]
    return message


def test_directory_without_model_stops_the_start(start: Start, tmp_path: Path) -> None:
    assert f"LONGHAUL_MODEL is '{tmp_path}', a directory that holds no model" in refusal(start(tmp_path))


def test_unsupported_model_stops_the_start(start: Start, tmp_path: Path, tiny_model_dir: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"model_type": "bloom"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    said = refusal(start(tmp_path / "model"))
    assert "model type bloom is not supported: the code of BloomForCausalLM fixes its attention function" in said


def test_unreadable_tokenizer_stops_the_start(start: Start, tmp_path: Path, tiny_model_dir: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text('{"model": {"type": "no such type"}}')
    assert f"the tokenizer of {tmp_path / 'model'} can't be loaded: " in refusal(start(tmp_path / "model"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"LONGHAUL_MODEL": "/no/such/place"}, "LONGHAUL_MODEL is '/no/such/place'"),
        ({"LONGHAUL_MODLE": "a"}, "LONGHAUL_MODLE is not a setting"),
        ({"LONGHAUL_THREADS": "many"}, "LONGHAUL_THREADS is 'many'; expected a whole number from 1 to 1024"),
        ({"LONGHAUL_HOST": "a..b"}, "can't listen on a..b"),
    ],
)
def test_bad_setting_stops_the_start(start: Start, settings: dict[str, str], said: str) -> None:
    server = start(**settings)
    assert said in refusal(server)
    assert len(server.log_lines()) == 1


def test_port_in_use_stops_the_start(start: Start) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        server = start(LONGHAUL_PORT=taken.getsockname()[1])
        assert f"can't listen on 127.0.0.1:{taken.getsockname()[1]}" in refusal(server)


# SIGTERM


def test_sigterm_during_imports_exits_0(start: Start) -> None:
    server = start()
    eventually(lambda: b"container" in Path(f"/proc/{server.process.pid}/cmdline").read_bytes())
    eventually(lambda: _catches(server.process.pid, signal.SIGTERM))
    server.send(signal.SIGTERM)
    assert server.exit_status() == 0


def _catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_sigterm_during_model_load_exits_0(start: Start) -> None:
    server = start()
    engine = eventually(lambda: server.engine)
    server.send(signal.SIGTERM)
    assert server.exit_status() == 0
    assert not engine.is_running()


def test_sigterm_under_load_answers_every_request(start: Start) -> None:
    server = start().wait_until_ready()
    medium = [server.post_soon(json=lasting(f"{number} seas are", 300)) for number in range(3)]
    eventually(lambda: server.metric("longhaul_sequences_running") >= 3)
    hopeless = server.start_endless(3)
    server.send(signal.SIGTERM)
    eventually(lambda: server.ping() == (503, {"status": "draining", "reason": "the server is shutting down"}))
    assert codes([server.post(json=SHORT)]) == {(503, "shutting_down")}
    assert [each.result().status_code for each in medium] == [200, 200, 200]
    server.send(signal.SIGTERM)  # a second one means: now
    assert codes([each.result() for each in hopeless]) == {(503, "shutting_down")}
    assert server.exit_status() == 0


def test_sigterm_lets_clients_send_and_read_on(start: Start) -> None:
    server = start().wait_until_ready()
    with reader(server) as reading, server.connect() as sending:
        body = json.dumps(SHORT).encode()
        sending.sendall(head(len(body)) + body[:5])
        eventually(lambda: server.metric("longhaul_requests_running") == 2)
        server.send(signal.SIGTERM)
        eventually(lambda: server.ping()[0] == 503)
        sending.sendall(body[5:])
        assert sending.recv(1000).startswith(b"HTTP/1.1 200 OK")
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(2)  # it waits for the one that reads
        answer = b"".join(iter(lambda: reading.recv(1 << 20), b""))
    assert answer.count(b'"recordId"') == 200
    assert server.exit_status() == 0


def head(length: int, *headers: str) -> bytes:
    lines = ["POST /invocations HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def reader(server: Server) -> socket.socket:
    """Return a connection with an answer on its way that no socket's buffer holds: errors that repeat long lines."""
    line = {"recordId": "a", "modelInput": {"prompt": "a" * 90_000, "no such field": 1}}
    body = (json.dumps(line).encode() + b"\n") * 200
    connection = server.connect()
    connection.sendall(head(len(body), "Content-Type: application/jsonlines", "Connection: close") + body)
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    return connection


# The engine dies


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("victim") / "log"
    with Server(tiny_model_dir, log, LONGHAUL_STALL_TIMEOUT_S=1) as server:
        yield server.wait_until_ready()


def has_generated(server: Server, tokens: int) -> None:
    """Wait until the server has generated more tokens."""
    name = "longhaul_generation_tokens_total"
    before = server.metric(name)
    eventually(lambda: server.metric(name) >= before + tokens)


def test_idle_engine_is_not_stalled(victim: Server) -> None:
    engine = victim.engine
    with pytest.raises(subprocess.TimeoutExpired):
        victim.process.wait(2.5)
    assert victim.post(json=SHORT).status_code == 200
    assert victim.engine == engine


def test_stalled_engine_is_replaced_without_loss(victim: Server) -> None:
    request = victim.post_soon(json=lasting("The sea is", 1000))
    before = victim.metric("longhaul_generation_tokens_total")
    has_generated(victim, 100)
    stopped = victim.kill_engine(signal.SIGSTOP)
    assert request.result().status_code == 200
    assert victim.metric("longhaul_generation_tokens_total") == before + 1000
    assert "no step for" in victim.log()
    assert victim.engine is not None and victim.engine.pid != stopped


def test_requests_resume_in_next_engine(victim: Server) -> None:
    restarts, resubmitted = (victim.metric(f"longhaul_{name}_total") for name in COUNTED)
    requests = [victim.post_soon(json=lasting(f"{number} is", 700)) for number in range(4)]
    lines = json.dumps(lasting("a", 700))
    batch = victim.post_soon(content=lines, headers={"content-type": "application/jsonlines"})
    eventually(lambda: victim.metric("longhaul_sequences_running") == 5)
    dead = victim.kill_engine()
    eventually(lambda: victim.ping() == RECOVERING)
    # Sent between two engines: it waits for the new one.
    assert victim.post(json=SHORT).status_code == 200
    assert [each.result().status_code for each in [*requests, batch]] == [200] * 5
    assert victim.engine is not None and victim.engine.pid != dead
    assert [victim.metric(f"longhaul_{name}_total") for name in COUNTED] == [restarts + 1, resubmitted + 5]
    assert victim.ping() == (200, {"status": "ready", "reason": None})


COUNTED = ("engine_restarts", "sequences_resubmitted")
RECOVERING = (200, {"status": "recovering", "reason": "the engine died and is being started again"})


def test_request_during_engine_death_is_kept(victim: Server) -> None:
    steady = [victim.post_soon(json=lasting("The sea is", 20 + number % 7)) for number in range(32)]
    eventually(lambda: any(each.done() for each in steady))
    victim.kill_engine()
    # Sent one after the other until the engine is back, so that some come at the worst moment.
    meanwhile = [victim.post(json=SHORT).status_code for _ in range(20)]
    assert {each.result().status_code for each in steady} | set(meanwhile) == {200}


def test_repeated_engine_deaths_end_the_server(start: Start) -> None:
    server = start().wait_until_ready()
    waiting = server.start_endless(2)
    has_generated(server, 1)
    server.kill_engine()
    eventually(lambda: "engine_died" in actions(server))
    waiting.append(server.post_soon(json=SHORT))
    eventually(lambda: server.metric("longhaul_sequences_waiting") == 1)
    for _ in range(4):
        eventually(lambda: server.engine).kill()
        eventually(lambda: server.engine is None)
    assert codes([each.result() for each in waiting]) <= {(500, "engine_failed"), (503, "failed")}
    assert server.exit_status() == 1
    assert any("4 times before it had generated anything" in line["message"] for line in server.log_lines())


# The server dies


def test_engine_dies_with_killed_server(start: Start) -> None:
    server = start().wait_until_ready()
    server.start_endless()
    engine = server.engine
    assert engine is not None
    server.process.kill()
    engine.wait(2)


def test_loading_engine_dies_with_killed_server(start: Start) -> None:
    server = start()
    engine = eventually(lambda: server.engine)
    server.process.kill()
    engine.wait(2)


# The client leaves


def test_disconnect_frees_sequences(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        server.post(json=endless("a") | {"inputs": [f"{number} is" for number in range(80)]}, timeout=1)
    eventually(lambda: server.metric("longhaul_sequences_running") == 0)
    assert server.metric("longhaul_sequences_waiting") == 0
    eventually(lambda: 'outcome="abandoned"' in server.metrics())


def test_disconnect_frees_batch_and_spools(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    before = process.num_fds()
    lines = "".join(json.dumps(endless(f"{number} is")) + "\n" for number in range(200))
    with pytest.raises(httpx.ReadTimeout):
        server.post(content=lines, headers={"content-type": "application/jsonlines"}, timeout=1)
    eventually(lambda: server.metric("longhaul_sequences_running") == 0)
    assert server.metric("longhaul_sequences_waiting") == 0
    eventually(lambda: process.num_fds() <= before)


def test_disconnect_during_upload_leaves_nothing(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    before = process.num_fds()
    with server.connect() as connection:
        connection.sendall(head(1000, "Content-Type: application/jsonlines") + b"{")
        eventually(lambda: server.metric("longhaul_requests_running") == 1)
    eventually(lambda: server.metric("longhaul_requests_running") == 0)
    eventually(lambda: process.num_fds() <= before)


def test_disconnect_during_answer_leaves_nothing(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    before = process.num_fds()
    reader(server).close()
    eventually(lambda: server.metric("longhaul_requests_running") == 0)
    eventually(lambda: process.num_fds() <= before)


# Process 1


def _may_unshare() -> bool:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not _may_unshare(), reason="needs the right to make a PID namespace")
def test_process_1_reaps_zombies_and_exits_0(start: Start, tmp_path: Path) -> None:
    # The shell leaves an orphan and becomes the server: in the new namespace it is process 1.
    script = tmp_path / "orphan.sh"
    script.write_text(f'#!/bin/sh\n(sleep 0.2 &)\nexec "{ROOT}/serve"\n')
    script.chmod(0o755)
    unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", str(script))
    server = start(command=unshare).wait_until_ready()
    process = psutil.Process(server.process.pid).children()[0]
    eventually(lambda: [child.name() for child in process.children()] == ["longhaul-engine"])
    assert server.post(json=SHORT).status_code == 200
    os.kill(process.pid, signal.SIGTERM)
    assert server.exit_status() == 0
