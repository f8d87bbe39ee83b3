"""Clients that leave: one that has its whole answer, one that has ended only its sending, and one that is gone."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.server import TIMEOUT_S, Server, eventually, lasting
from testing.tiny_models import save_tiny_model

INTERVAL_S = 0.1
UNSEEDED = {"prompt": "The sea is", "max_tokens": 8, "temperature": 1.0, "ignore_eos": True}
LONG = UNSEEDED | {"max_tokens": 120}
JSON = "application/json"
JSON_LINES = "application/jsonlines"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("shared") / "log"
    with Server(tiny_model_dir, log, LONGHAUL_CHECKPOINT_INTERVAL_S=INTERVAL_S) as server:
        yield server.wait_until_ready()


def request(body: object, media_type: str = JSON, *headers: str, version: str = "1.1") -> bytes:
    text = json.dumps(body) if media_type == JSON else f"{json.dumps(body)}\n" * 2
    lines = [f"POST /invocations HTTP/{version}", "Host: a", f"Content-Type: {media_type}", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(text)}", "", text]).encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one answer to its last byte and no further."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1) or pytest.fail(f"the connection ended: {received!r}")
    status, *lines = received.decode().lower().strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    body = b""
    while len(body) < int(headers["content-length"]):
        body += connection.recv(int(headers["content-length"]) - len(body)) or pytest.fail("the answer is not whole")
    return int(status.split()[1]), headers, body


def told(server: Server, invocation: str) -> int:
    """Return the status that the log tells of an invocation, once it does."""
    lines = eventually(
        lambda: [
            line
            for line in server.log_lines()
            if line.get("action") == "invocation_end" and line["invocation_id"] == invocation
        ]
    )
    return int(lines[0]["status"])


def abandoned(server: Server) -> int:
    return sum(line.get("status") == 499 for line in server.log_lines())


def texts(body: bytes) -> list[str]:
    return [choice["text"] for line in body.splitlines() for choice in json.loads(line)["choices"]]


# Whole answers


@pytest.mark.parametrize("media_type", [JSON, JSON_LINES], ids=["document", "lines"])
@pytest.mark.parametrize("way", ["kept open", "hangs up", "asks to close"])
def test_whole_answers_are_told_as_such(shared: Server, media_type: str, way: str) -> None:
    headers = ["Connection: close"] * (way == "asks to close")
    seen: dict[str, list[str]] = {}
    kept = []
    for _ in range(25):
        connection = shared.connect()
        connection.sendall(request(UNSEEDED, media_type, *headers))
        status, answered, body = read_answer(connection)
        assert status == 200 and "x-longhaul-resumed-tokens" not in answered
        seen[answered["x-longhaul-invocation-id"]] = texts(body)
        if way == "kept open":
            kept.append(connection)
        else:
            connection.close()
    assert {told(shared, invocation) for invocation in seen} == {200}
    assert len({text for answer in seen.values() for text in answer}) == 25 * (1 if media_type == JSON else 2)
    for connection in kept:
        connection.close()


@pytest.mark.parametrize("media_type", [JSON, JSON_LINES], ids=["document", "lines"])
def test_long_answers_to_leaving_clients_differ(shared: Server, media_type: str) -> None:
    """Their journal is begun, so that each would be continued if its client were thought to be cut off."""
    answers = []
    for _ in range(4):
        with shared.connect() as connection:
            connection.sendall(request(LONG, media_type))
            answers.append(read_answer(connection))
    assert all("x-longhaul-resumed-tokens" not in headers for _, headers, _ in answers)
    assert {told(shared, headers["x-longhaul-invocation-id"]) for _, headers, _ in answers} == {200}
    found = [text for _, _, body in answers for text in texts(body)]
    assert len(set(found)) == len(found)


def test_answer_before_kill_is_not_repeated(start: Callable[..., Server], tmp_path: Path) -> None:
    """The server is killed right behind the last byte, when what it generated is in the journal."""
    settings = {"LONGHAUL_CHECKPOINT_URI": tmp_path / "journal", "LONGHAUL_CHECKPOINT_INTERVAL_S": INTERVAL_S}
    found = []
    for _ in range(2):
        server = start(**settings).wait_until_ready()
        with server.connect() as connection:
            connection.sendall(request(LONG))
            _, headers, body = read_answer(connection)
            server.send(signal.SIGKILL)
        assert server.exit_status() and "x-longhaul-resumed-tokens" not in headers
        found += texts(body)
    assert len(set(found)) == 2 and (tmp_path / "journal").exists()


# Half-closed connections


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("body", [UNSEEDED, LONG], ids=["short", "long"])
def test_half_closed_client_gets_its_answer(shared: Server, version: str, body: dict[str, Any]) -> None:
    with shared.connect() as connection:
        connection.sendall(request(body, version=version))
        connection.shutdown(socket.SHUT_WR)
        status, headers, answer = read_answer(connection)
        assert (status, headers["connection"], connection.recv(1)) == (200, "close", b"")
    assert len(texts(answer)) == 1
    assert told(shared, headers["x-longhaul-invocation-id"]) == 200


def test_half_closed_client_gets_all_answers(shared: Server) -> None:
    with shared.connect() as connection:
        connection.sendall(request(UNSEEDED) + request(UNSEEDED, JSON_LINES) + request({"prompt": 1}))
        connection.shutdown(socket.SHUT_WR)
        assert [read_answer(connection)[0] for _ in range(3)] == [200, 200, 400]
        assert connection.recv(1) == b""


def test_half_closed_client_that_goes_is_freed(shared: Server) -> None:
    """The first of the two is told by the answer's first bytes, which nothing takes any more."""
    for seconds_later in (False, True):
        connection = shared.connect()
        connection.sendall(request(lasting("The sea is", 8000)))
        connection.shutdown(socket.SHUT_WR)
        if seconds_later:
            assert connection.recv(5) == b"HTTP/"
            eventually(lambda: shared.metric("longhaul_sequences_running") == 1)
        connection.close()
        eventually(lambda: shared.metric("longhaul_requests_running") == 0, 10)


def test_half_closed_unfinished_request_is_dropped(shared: Server) -> None:
    with shared.connect() as connection:
        connection.sendall(request(UNSEEDED)[:-5])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


# Clients that are gone


@pytest.mark.parametrize("lines", [3, 200], ids=["in the kernel", "on its way"])
def test_client_that_leaves_text_unread_is_continued(shared: Server, lines: int) -> None:
    """The lines behind the first are errors, which repeat what was sent."""
    long = {"recordId": str(lines), "modelInput": {"prompt": "long " * 8000, "typo": 1}}
    body = "".join(json.dumps(line) + "\n" for line in [UNSEEDED | {"max_tokens": 20}, *[long] * lines]).encode()
    before = abandoned(shared)
    with socket.socket() as connection:
        connection.settimeout(TIMEOUT_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", shared.port))
        head = f"Host: a\r\nContent-Type: {JSON_LINES}\r\nContent-Length: {len(body)}"
        connection.sendall(f"POST /invocations HTTP/1.1\r\n{head}\r\n\r\n".encode() + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    eventually(lambda: abandoned(shared) > before)
    for resumed in ("20", None):  # the second one comes after a whole answer
        response = shared.post(content=body, headers={"content-type": JSON_LINES})
        assert response.headers.get("x-longhaul-resumed-tokens") == resumed


# Prompts that change


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory, model_dir: str) -> Callable[[str], Path]:
    """Return a function that makes a model with a chat template."""

    def make(template: str) -> Path:
        directory = tmp_path_factory.mktemp("changing")
        save_tiny_model(directory, Path(model_dir))
        (directory / "chat_template.jinja").write_text(template)
        return directory

    return make


@pytest.mark.parametrize("size", [0, 1_100_000], ids=["small", "large"])
def test_template_with_clock_resumes_with_it(
    start: Callable[..., Server], changing: Callable[[str], Path], size: int
) -> None:
    """Its prompt tells microseconds: no two renderings by the present time are equal."""
    server = start(changing("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }} {{ messages[0].content }}")).wait_until_ready()
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 300, "ignore_eos": True, "user": "x" * size}
    with server.connect() as connection:
        connection.sendall(request(body))
        eventually(lambda: server.metric("longhaul_generation_tokens_total") > 20)
    eventually(lambda: abandoned(server) == 1)
    answer = server.post(content=json.dumps(body), headers={"content-type": JSON})
    assert int(answer.headers["x-longhaul-resumed-tokens"]) > 20
    assert "x-longhaul-changed-prompts" not in answer.headers


def test_changed_prompt_is_told(start: Callable[..., Server], changing: Callable[[str], Path]) -> None:
    server = start(changing("{{ range(99999) | random }} {{ messages[0].content }}")).wait_until_ready()
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "ignore_eos": True}
    headers = {"X-Amzn-SageMaker-Custom-Attributes": "job=a-job"}
    assert "x-longhaul-changed-prompts" not in server.post(json=body, headers=headers).headers
    again = server.post(json=body, headers=headers)
    assert again.headers["x-longhaul-changed-prompts"] == "1"
    assert "x-longhaul-resumed-tokens" not in again.headers
    assert server.metric("longhaul_changed_prompts_total") == 1
    (line,) = [line for line in server.log_lines() if line.get("action") == "prompts_changed"]
    assert (line["level"], line["job"], line["message"].split()[0]) == ("WARNING", "a-job", "1")
