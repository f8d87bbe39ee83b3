"""Bad input at every field and hostile transport, through the socket: none disturbs a neighbour or leaves a trace.

Every case carries a canary. It may come back in no error, log line or metric, at any log level.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import inspect
import itertools
import json
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from uvicorn.protocols.http import flow_control, httptools_impl

from testing.server import Server, eventually, lasting

CANARY = "kept-secret"
JSON = ("Content-Type: application/json",)
JSON_LINES = ("Content-Type: application/jsonlines",)
MOST_TOKENS = 512
NEIGHBOUR = {
    "inputs": "The sea is",
    "parameters": {"max_new_tokens": 15, "ignore_eos": True, "temperature": 1.0, "seed": 1},
}


@pytest.fixture(scope="module")
def spool_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, spool_dir: Path) -> Iterator[Server]:
    settings = {
        "LONGHAUL_LOG_LEVEL": "DEBUG",
        "LONGHAUL_CLIENT_TIMEOUT_S": 1,
        "LONGHAUL_MAX_MODEL_LEN": MOST_TOKENS,
        "LONGHAUL_MAX_JSON_BYTES": 100_000,
        "LONGHAUL_MAX_BODY_BYTES": 30_000_000,
        "LONGHAUL_SPOOL_DIR": spool_dir,
    }
    with Server(tiny_model_dir, tmp_path_factory.mktemp("hostile") / "log", **settings) as server:
        yield server.wait_until_ready()


@pytest.fixture(scope="module")
def neighbours_answer(hostile: Server) -> Any:
    return hostile.ask(NEIGHBOUR)


@pytest.fixture(autouse=True)
def peace(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check that a neighbour's answer stays the same during each case, and that no trace of the case is left."""
    if "hostile" not in request.fixturenames:
        yield
        return
    server: Server = request.getfixturevalue("hostile")
    expected = request.getfixturevalue("neighbours_answer")
    neighbour = server.post_soon(json=NEIGHBOUR)
    eventually(lambda: server.metric("longhaul_sequences_running") or neighbour.done())
    yield
    assert neighbour.result().json() == expected
    eventually(lambda: server.metric("longhaul_requests_running") == server.metric("longhaul_sequences_running") == 0)
    assert server.metric("longhaul_sequences_waiting") == 0
    eventually(lambda: not spools(server, request.getfixturevalue("spool_dir")))
    assert CANARY not in server.log() + server.metrics()
    assert server.ping()[0] == 200


def spools(server: Server, directory: Path) -> list[str]:
    """Return the server's open files in the spool directory, those without a name included."""
    links = []
    for entry in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except FileNotFoundError:  # closed meanwhile
            continue
    return [link for link in links if link.startswith(str(directory))]


def head(length: int, *headers: str, path: str = "/invocations") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def document(value: object, *headers: str) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return head(len(body), *headers) + body


def read_head(connection: socket.socket) -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    with read_head(connection) as response:
        body = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    assert len(body) == int(headers["content-length"])
    return response.status, headers, body


def error_in(body: bytes) -> dict[str, Any]:
    """Return the error of an answer, after checking its form and that the canary is not in it."""
    assert CANARY not in body.decode()
    error: dict[str, Any] = json.loads(body)["error"]
    of_the_job = {"job", "resumable"} if error["code"] == "shutting_down" else set()
    assert error.keys() == {"message", "type", "param", "code"} | of_the_job
    return error


def last_words(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Read the answer after which the connection ends; return its status and error."""
    status, headers, body = read_answer(connection)
    assert headers["connection"] == "close"
    assert connection.recv(1) == b""
    return status, error_in(body)


# Documents

ONE_TOO_MANY = {"prompt": [5] * MOST_TOKENS, "user": CANARY}
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
DOCUMENTS: dict[str, tuple[bytes, str, str | None]] = {
    "not JSON": (document(f"{{{CANARY}".encode()), "invalid_json", None),
    "cut off": (document(f'{{"inputs": "{CANARY}'.encode()), "invalid_json", None),
    "no body": (document(b"", f"X-Canary: {CANARY}"), "invalid_json", None),
    "not UTF-8": (document(f'{{"inputs": "{CANARY}\xff"}}'.encode("latin-1")), "invalid_json", None),
    "NaN": (document({"inputs": CANARY, "parameters": {"temperature": float("nan")}}), "invalid_json", None),
    "Infinity": (document({"prompt": CANARY, "temperature": float("-inf")}), "invalid_json", None),
    "an infinite number": (document(f'{{"prompt": "{CANARY}", "top_p": 1e999}}'.encode()), "invalid_json", None),
    "nested deeply": (document(f'{{"inputs": "{CANARY}", "a": '.encode() + b"[" * 50_000), "invalid_json", None),
    "half a character in a prompt": (document({"inputs": f"{CANARY} \ud83d"}), "invalid_json", None),
    "half a character in a stop": (document({"prompt": CANARY, "stop": ["\ud83d"]}), "invalid_json", None),
    "no object": (document([CANARY]), "invalid_value", None),
    "no dialect": (document({"text": CANARY}), "invalid_value", None),
    "two dialects": (document({"inputs": CANARY, "prompt": CANARY}), "invalid_value", "prompt"),
    "an unknown field": (document({"inputs": CANARY, "typo": CANARY}), "unknown_parameter", "typo"),
    "inputs of a wrong type": (document({"inputs": {CANARY: CANARY}}), "invalid_value", "inputs"),
    "a wrong type": (
        document({"inputs": CANARY, "parameters": {"temperature": CANARY}}),
        "invalid_value",
        "parameters.temperature",
    ),
    "a wrong type deep inside": (
        document({"messages": [{"role": "user", "content": CANARY}, {"role": [CANARY]}]}),
        "invalid_value",
        "messages[1].role",
    ),
    "out of range": (document({"prompt": CANARY, "top_p": 1.5}), "invalid_value", "top_p"),
    "far out of range": (document({"prompt": CANARY, "n": 10**30}), "invalid_value", "n"),
    "a token that is none": (document({"prompt": [5, 10**6], "user": CANARY}), "invalid_value", "prompt"),
    "one token too many": (document(ONE_TOO_MANY), "context_length_exceeded", "prompt"),
    "far too many tokens": (document({"inputs": f"{CANARY} " * 8000}), "context_length_exceeded", "inputs"),
    "gzip cut off": (
        document(gzip.compress(f'{{"inputs": "{CANARY}"}}'.encode())[:-5], "Content-Encoding: gzip"),
        "invalid_content_encoding",
        "body",
    ),
    "gzip that is none": (document(CANARY.encode(), "Content-Encoding: gzip"), "invalid_content_encoding", "body"),
    "UTF-16": (document(f'{{"inputs": "{CANARY}"}}'.encode("utf-16")), "invalid_json", None),
    "an attribute": (
        document(CANARY.encode(), "Content-Type: text/plain", f"{ATTRIBUTES}: temperature={CANARY}"),
        "invalid_value",
        f"{ATTRIBUTES}: temperature",
    ),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_bad_document_gives_400_without_quoting_it(hostile: Server, case: str) -> None:
    request, code, param = DOCUMENTS[case]
    with hostile.connect() as connection:
        connection.sendall(request)
        status, headers, body = read_answer(connection)
        error = error_in(body)
        assert (status, error["code"], error["param"]) == (400, code, param), error["message"]
        assert "connection" not in headers  # and the next request on it is served
        connection.sendall(document({"inputs": CANARY, "parameters": {"max_new_tokens": 1}}))
        assert read_answer(connection)[0] == 200


def test_prompt_with_room_for_one_token_runs(hostile: Server) -> None:
    answer = hostile.ask({"prompt": [5] * (MOST_TOKENS - 1), "user": CANARY, "ignore_eos": True})
    assert answer["usage"]["completion_tokens"] == 1


def test_foreign_custom_attributes_are_ignored(hostile: Server) -> None:
    headers = {"content-type": "text/plain", ATTRIBUTES: f"tenant={CANARY};max_new_tokens=1"}
    assert hostile.post(content=CANARY, headers=headers).status_code == 200


# JSON lines

ASK = {"inputs": CANARY, "parameters": {"max_new_tokens": 1}}
BODY = {"prompt": CANARY, "max_tokens": 1}
ITEM = {"custom_id": CANARY, "method": "POST", "url": "/v1/completions", "body": BODY}
LINES: list[tuple[bytes, str | None]] = [
    (b"\xef\xbb\xbf" + json.dumps(ASK).encode(), None),
    (f"{{{CANARY}".encode(), "invalid_json"),
    (json.dumps([CANARY]).encode(), "invalid_value"),
    (f'{{"inputs": "{CANARY}\xff"}}'.encode("latin-1"), "invalid_json"),
    (json.dumps({"inputs": f"{CANARY} \ud83d"}).encode(), "invalid_json"),
    (json.dumps(ITEM | {"custom_id": "\ud83d"}).encode(), "invalid_json"),
    (json.dumps({"inputs": CANARY * 10_000}).encode(), "line_too_long"),
    (b'{"a": ' * 15_000 + CANARY.encode(), "invalid_json"),
    (json.dumps(ASK | {"typo": CANARY}).encode(), "unknown_parameter"),
    (json.dumps({"inputs": [5] * MOST_TOKENS, "a": CANARY}).encode(), "unknown_parameter"),
    (json.dumps(ASK).encode(), None),
]


def test_bad_lines_fail_alone_with_any_ending(hostile: Server) -> None:
    ends = itertools.cycle([b"\r\n", b"\n", b"\n\n", b"\r\n  \r\n"])
    body = b"".join(line + next(ends) for line, _ in LINES).rstrip()  # the last one has no end
    response = hostile.post(content=body, headers={"content-type": "application/jsonlines"})
    answers = [json.loads(line) for line in response.text.splitlines()]
    codes = [answer["error"]["code"] if isinstance(answer, dict) else None for answer in answers]
    assert codes == [code for _, code in LINES]
    assert answers[0] == answers[-1] == hostile.ask(ASK)
    assert CANARY not in response.text.replace(json.dumps(answers[0]), "")


def test_custom_ids_appear_only_in_their_lines(hostile: Server) -> None:
    (answer,) = hostile.ask_lines([ITEM | {"body": BODY | {"top_p": CANARY}}])
    assert answer.pop("custom_id") == CANARY
    assert CANARY not in json.dumps(answer)
    assert answer["error"]["code"] == "invalid_value"


def test_repeated_custom_id_fails_alone(hostile: Server) -> None:
    first, again, other = hostile.ask_lines([ITEM, ITEM, ITEM | {"custom_id": "other"}])
    assert [line["custom_id"] for line in (first, again, other)] == [CANARY, CANARY, "other"]
    assert [line["response"]["status_code"] for line in (first, again, other)] == [200, 400, 200]
    assert again["error"]["code"] == "duplicate_custom_id"
    assert CANARY not in json.dumps(again["error"]) + json.dumps(again["response"])


# Floods

POST = b"POST /invocations HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GZIPPED = POST + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(1 << 20)) * 64
"""Megabytes of zeros in 64 KB: members that can follow one another for ever."""
FLOODS: dict[str, tuple[bytes, bytes, int, str]] = {
    "headers": (POST, f"X-{CANARY}: {CANARY}\r\n".encode() * 100, 431, "headers_too_large"),
    "one header": (POST + b"X-Long: ", CANARY.encode() * 1000, 431, "headers_too_large"),
    "a header's name": (POST, CANARY.encode() * 1000, 431, "headers_too_large"),
    "the URL": (b"POST /", CANARY.encode() * 1000, 414, "url_too_long"),
    "a chunk's extension": (CHUNKED + b"1;", CANARY.encode() * 1000, 431, "headers_too_large"),
    "trailers": (CHUNKED + b"0\r\n", f"X-Trailer: {CANARY}\r\n".encode() * 100, 431, "headers_too_large"),
    "one trailer": (CHUNKED + b"0\r\nX-Trailer: ", CANARY.encode() * 1000, 431, "headers_too_large"),
    "a bomb": (GZIPPED, b"%x\r\n%s\r\n" % (len(BOMB), BOMB), 413, "body_too_large"),
    "a body over all limits": (CHUNKED, b"%x\r\n%s\r\n" % (1 << 16, b"a" * (1 << 16)), 413, "body_too_large"),
}


@pytest.mark.parametrize("case", FLOODS)
def test_flooding_body_is_refused_without_using_memory(hostile: Server, case: str) -> None:
    opening, piece, status, code = FLOODS[case]
    process = psutil.Process(hostile.process.pid)
    before = process.memory_info().rss
    with hostile.connect() as connection:
        connection.sendall(opening)
        while not select.select([connection], [], [], 0)[0]:
            connection.sendall(piece)
        for _ in range(20):  # it has not seen the answer yet
            connection.sendall(piece)
        answered, _, body = read_answer(connection)
    assert (answered, error_in(body)["code"]) == (status, code)
    assert process.memory_info().rss < before + (32 << 20)


def test_thousands_of_pipelined_requests_are_cut_off(hostile: Server) -> None:
    process = psutil.Process(hostile.process.pid)
    before = process.memory_info().rss
    with hostile.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n" * 200_000)
        while connection.recv(1 << 16):
            pass
    assert process.memory_info().rss - before < 30 << 20


def test_endless_flood_is_cut_off(hostile: Server) -> None:
    opening, piece, *_ = FLOODS["one header"]
    with hostile.connect() as connection:
        connection.sendall(opening)
        with pytest.raises(OSError):
            for _ in range(20_000):
                connection.sendall(piece)


def test_headers_within_limit_are_accepted(hostile: Server) -> None:
    with hostile.connect() as connection:
        connection.sendall(document(ASK, *[f"X-{number}: {CANARY * 10}" for number in range(400)]))
        assert read_answer(connection)[0] == 200


MALFORMED = {
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + CANARY.encode(),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no method": f"{CANARY} / HTTP/1.1\r\n\r\n".encode(),
    "a URL that is none": f"POST http://[{CANARY} HTTP/1.1\r\n\r\n".encode(),
    "a URL beyond ASCII": f"POST /é{CANARY} HTTP/1.1\r\n\r\n".encode(),
    "a header without a name": POST + f": {CANARY}\r\n\r\n".encode(),
    "a length that is none": POST + f"Content-Length: {CANARY}\r\n\r\n".encode(),
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a length and chunks": POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na",
    "a chunk's size that is none": CHUNKED + CANARY.encode() + b"\r\n",
    "a tunnel": f"CONNECT {CANARY}:443 HTTP/1.1\r\n\r\n".encode(),
    "a body longer than it says": document(lasting(CANARY, 400)) + f" {CANARY}\r\n".encode(),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_http_gives_400_in_our_form(hostile: Server, case: str) -> None:
    with hostile.connect() as connection:
        connection.sendall(MALFORMED[case])
        status, error = last_words(connection)
    assert (status, error["code"]) == (400, "malformed_request"), error["message"]


# Upgrades


@pytest.mark.parametrize("form", ["at once", "in two", "in chunks"])
def test_http_2_upgrade_offer_is_ignored(hostile: Server, form: str) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    body = json.dumps(ASK).encode()
    with hostile.connect() as connection:
        if form == "at once":
            connection.sendall(document(body, *offer, *JSON))
        elif form == "in two":
            connection.sendall(head(len(body), *offer, "Expect: 100-continue"))
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(body)
        else:
            opening = POST + "\r\n".join([*offer, "Transfer-Encoding: chunked", "", ""]).encode()
            connection.sendall(opening + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        status, _, answer = read_answer(connection)
        assert (status, json.loads(answer)) == (200, hostile.ask(ASK))
        connection.sendall(document(ASK))
        assert read_answer(connection)[0] == 200


# Slow clients

SAYS_WHY = "1 s (LONGHAUL_CLIENT_TIMEOUT_S)"
HALF_A_HEAD = POST + f"X-Canary: {CANARY}".encode()
SLOW = {
    "half a head": HALF_A_HEAD,
    "no body": head(100, *JSON),
    "half a document": head(100, *JSON) + f'{{"inputs": "{CANARY}'.encode(),
    "half a batch": head(10_000, *JSON_LINES) + json.dumps(ASK).encode() + b"\n",
    "half a chunk": CHUNKED + b"ff\r\n" + CANARY.encode(),
    "a second head": document({}) + HALF_A_HEAD,
}


def test_client_that_stops_sending_gets_408(hostile: Server) -> None:
    connections = {case: hostile.connect() for case in SLOW}
    for case, sent in SLOW.items():
        connections[case].sendall(sent)
    assert read_answer(connections["a second head"])[0] == 400
    for case, connection in connections.items():
        with connection:
            status, error = last_words(connection)
        assert (status, error["code"], SAYS_WHY in error["message"]) == (408, "client_timeout", True), case


def test_earlier_deadline_blames_no_slow_client(hostile: Server) -> None:
    """Timers may come a millisecond early by the event loop's clock."""
    connections = [hostile.connect() for _ in range(32)]
    for number, connection in enumerate(connections):
        timeout = f"X-Amzn-SageMaker-Custom-Attributes: timeout={1 + number / 50:.2f}"
        connection.sendall(head(100, timeout, *JSON))
    for connection in connections:
        with connection:
            status, error = last_words(connection)
        assert (status, error["code"]) == (408, "deadline_exceeded")


def drip(connection: socket.socket, data: bytes) -> bool:
    """Send byte by byte until there is an answer; return whether there was one."""
    for byte in data:
        connection.sendall(bytes([byte]))
        if select.select([connection], [], [], 0.1)[0]:
            return True
    return False


def test_trickling_head_times_out(hostile: Server) -> None:
    with hostile.connect() as connection:
        assert drip(connection, HALF_A_HEAD * 10)
        assert last_words(connection)[0] == 408


def test_slow_but_steady_body_is_accepted(hostile: Server) -> None:
    body = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 1}}).encode()
    with hostile.connect() as connection:
        connection.sendall(head(len(body)) + body[:-13])
        drip(connection, body[-13:])
        assert read_answer(connection)[0] == 200


def test_idle_connection_is_not_slow(hostile: Server) -> None:
    with hostile.connect() as connection:
        connection.sendall(document(ASK) + b"\r\n")  # the line end is nothing
        assert read_answer(connection)[0] == 200
        assert not select.select([connection], [], [], 1.3)[0]
        connection.sendall(document(ASK))
        assert read_answer(connection)[0] == 200


def test_client_waiting_for_answer_is_not_slow(hostile: Server) -> None:
    with hostile.connect() as connection:
        many = lasting(CANARY, 400) | {"inputs": [f"{number} {CANARY}" for number in range(16)]}
        connection.sendall(document(many) + HALF_A_HEAD)  # of the next request: its time has not begun
        assert read_answer(connection)[0] == 200


def test_early_answer_waits_for_no_more_body(hostile: Server) -> None:
    with hostile.connect() as connection:
        connection.sendall(head(100, path=f"/{CANARY}"))
        status, _, body = read_answer(connection)
        assert (status, error_in(body)["code"]) == (404, "not_found")
        assert connection.recv(1) == b""


def test_early_answer_is_readable_after_full_upload(hostile: Server) -> None:
    with hostile.connect() as connection:
        early = ("Content-Type: application/jsonlines; charset=latin-1", "Connection: close")
        connection.sendall(head(20_000_000, *early) + b"a" * 20_000_000)
        status, error = last_words(connection)
    assert (status, error["code"]) == (415, "unsupported_content_type")


def unread(server: Server) -> socket.socket:
    """Return a connection with an answer on its way that no socket's buffer holds: errors that repeat long lines."""
    line = {"recordId": "a", "modelInput": {"prompt": CANARY * 8000, "typo": 1}}
    body = (json.dumps(line).encode() + b"\n") * 200
    connection = server.connect()
    connection.sendall(document(body, *JSON_LINES))
    assert connection.recv(15, socket.MSG_PEEK) == b"HTTP/1.1 200 OK"
    return connection


def abandoned(server: Server) -> int:
    return sum(line.get("outcome") == "abandoned" and line.get("status") == 499 for line in server.log_lines())


def test_pipelining_client_disconnects_without_server_error(hostile: Server) -> None:
    for _ in range(5):
        connection = hostile.connect()
        connection.sendall(document({"inputs": CANARY, "parameters": {"max_new_tokens": 3}}) * 3)
        assert connection.recv(5) == b"HTTP/"  # of the first answer
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()  # with a reset
    eventually(lambda: hostile.metric("longhaul_requests_running") == 0)
    assert not [line for line in hostile.log_lines() if line["level"] == "ERROR"]


def test_unread_answer_cuts_client_off(hostile: Server, spool_dir: Path) -> None:
    before = abandoned(hostile)
    with unread(hostile) as connection:
        assert spools(hostile, spool_dir)
        eventually(lambda: not spools(hostile, spool_dir))
        eventually(lambda: abandoned(hostile) >= before + 1)
        response = read_head(connection)
        with pytest.raises(http.client.IncompleteRead), response:
            response.read()


def test_slowly_read_answer_is_whole(hostile: Server) -> None:
    with unread(hostile) as connection, read_head(connection) as response:
        pieces = 0
        while not select.select([], [], [], 0.1)[0] and pieces < 13:
            pieces += len(response.read(100_000)) == 100_000
        response.read()


def test_many_slow_clients_delay_nothing_else(hostile: Server) -> None:
    slow = [hostile.connect() for _ in range(200)]
    for connection in slow:
        connection.sendall(HALF_A_HEAD)
    with hostile.connect() as probe:
        probe.settimeout(0.5)
        probe.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(probe)[0] == 200
    for connection in slow:
        with connection:
            assert last_words(connection)[0] == 408


# Disconnects

GONE: dict[str, bytes] = {
    "in its head": HALF_A_HEAD,
    "in its document": f'{{"inputs": "{CANARY}'.encode(),
    "in its lines": head(10_000, *JSON_LINES) + json.dumps(ASK).encode() + b"\n",
    "while it waits": document(lasting(CANARY, 400) | {"inputs": [CANARY] * 10}),
    "while its lines wait": document((json.dumps(lasting(CANARY, 400)) + "\n").encode() * 200, *JSON_LINES),
}


ONCE = [(case, "closed") for case in GONE]
AGAIN = [("while it waits", "reset"), ("in its answer", "closed"), ("in its answer", "reset")]


@pytest.mark.parametrize(("case", "way"), [*ONCE, *AGAIN])
def test_disconnected_client_leaves_one_log_line(hostile: Server, spool_dir: Path, case: str, way: str) -> None:
    before = abandoned(hostile)
    if case == "in its answer":
        connection = unread(hostile)
    else:
        connection = hostile.connect()
        if case == "in its document":
            connection.sendall(head(1000, *JSON, "Expect: 100-continue"))
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(GONE[case])
    if case == "in its lines":
        eventually(lambda: spools(hostile, spool_dir))
    if "wait" in case:
        eventually(lambda: hostile.metric("longhaul_sequences_running") >= 10)
    if way == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
    eventually(lambda: abandoned(hostile) > before)
    # `peace` checks that nothing else is left and that the neighbour is undisturbed.


# SIGTERM


def test_silent_client_does_not_delay_drain(start: Callable[..., Server]) -> None:
    server = start().wait_until_ready()
    with server.connect() as one, server.connect() as other:
        one.sendall(head(100, *JSON) + b"{")
        other.sendall(head(100, *JSON_LINES) + b"{")
        eventually(lambda: server.metric("longhaul_requests_running") == 2)
        server.send(signal.SIGTERM)
        for connection in (one, other):
            status, error = last_words(connection)
            assert (status, error["code"]) == (503, "shutting_down")
            assert (error["job"], error["resumable"]) == (None, False)
    assert server.exit_status(15) == 0  # of the 22 s that work may take


# The library

RELIED_ON: dict[type, list[str]] = {
    httptools_impl.HttpToolsProtocol: [
        "__init__",
        "connection_made",
        "connection_lost",
        "data_received",
        "eof_received",
        "send_400_response",
        "on_message_begin",
        "on_url",
        "on_header",
        "on_headers_complete",
        "_start_asgi_task",
        "on_body",
        "on_message_complete",
        "on_response_complete",
        "shutdown",
        "resume_writing",
    ],
    httptools_impl.RequestResponseCycle: ["send", "receive", "run_asgi"],
    flow_control.FlowControl: ["drain", "pause_reading", "resume_reading", "pause_writing", "resume_writing"],
}
DIGESTS = {
    "HttpToolsProtocol.__init__": "4f08999410347141",
    "HttpToolsProtocol.connection_made": "6efb565ff3d36b91",
    "HttpToolsProtocol.connection_lost": "c91a4c9bf2e29c55",
    "HttpToolsProtocol.data_received": "010a7ae59a5d3b1a",
    "HttpToolsProtocol.eof_received": "5652627579a02369",
    "HttpToolsProtocol.send_400_response": "ae5a4a3782b646fd",
    "HttpToolsProtocol.on_message_begin": "96d377fdc7c2baef",
    "HttpToolsProtocol.on_url": "37be44e962b04ca8",
    "HttpToolsProtocol.on_header": "65d62c044f61fdbd",
    "HttpToolsProtocol.on_headers_complete": "1ea8589acfad92d8",
    "HttpToolsProtocol._start_asgi_task": "9c08c2571ae9b038",
    "HttpToolsProtocol.on_body": "dba9c32aeba35b6a",
    "HttpToolsProtocol.on_message_complete": "1fbad42dc31fc01f",
    "HttpToolsProtocol.on_response_complete": "64e254f28e389e76",
    "HttpToolsProtocol.shutdown": "d7351fa33f00d430",
    "HttpToolsProtocol.resume_writing": "7844bbaa8cceb1ef",
    "RequestResponseCycle.send": "abdd8601b326a8da",
    "RequestResponseCycle.receive": "8124ae006be71184",
    "RequestResponseCycle.run_asgi": "0f33f2449a444bc2",
    "FlowControl.drain": "4bda6b61c277ae87",
    "FlowControl.pause_reading": "7c27388bb984e9ed",
    "FlowControl.resume_reading": "a0429d30857e8488",
    "FlowControl.pause_writing": "93d4a08a9f2da9d6",
    "FlowControl.resume_writing": "a343e8b0baf08901",
}


@pytest.mark.parametrize("owner", RELIED_ON, ids=lambda owner: owner.__name__)
def test_http_library_is_the_reviewed_version(owner: type) -> None:
    digests = {
        f"{owner.__name__}.{name}": hashlib.sha256(inspect.getsource(getattr(owner, name)).encode()).hexdigest()[:16]
        for name in RELIED_ON[owner]
    }
    changed = {name: digest for name, digest in digests.items() if DIGESTS.get(name) != digest}
    assert not changed, (
        f"uvicorn changed {', '.join(changed)}, which container/connection.py overrides or relies on. Read what is new "
        f"against it, and only then put the new digests into tests/test_server_hostile.py: {changed}"
    )
