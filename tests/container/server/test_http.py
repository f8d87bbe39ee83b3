"""HTTP as probes, load balancers and clients of other services speak it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from container.server.app import create_app
from container.server.exchange import Exchanges
from container.server.state import ServerState
from container.settings import Settings
from testing.server import Server

CHAT = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2, "temperature": 0}
BODY = json.dumps(CHAT).encode()
READ = {"ping": "/ping", "health": "/health", "metrics": "/metrics", "models": "/v1/models", "API": "/openapi.json"}


@pytest.fixture
def connection(server: Server) -> Iterator[socket.socket]:
    with server.connect() as connection:
        yield connection


def send(connection: socket.socket, first_line: str, *headers: str, body: bytes = b"") -> None:
    length = [f"Content-Length: {len(body)}"] if body else []
    connection.sendall("\r\n".join([first_line, *headers, *length, "", ""]).encode() + body)


def read(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def is_closed(connection: socket.socket) -> bool:
    return connection.recv(1) == b""


def answer_of(response: httpx.Response) -> Any:
    """Return a chat's answer without what differs from one to the next."""
    assert response.status_code == 200, response.text
    return {name: value for name, value in response.json().items() if name not in ("id", "created")}


# Probes


@pytest.mark.parametrize("path", READ.values(), ids=READ.keys())
def test_head_tells_what_get_reads(server: Server, path: str) -> None:
    told = httpx.head(server.url + path, trust_env=False)
    got = server.get(path)
    assert (told.status_code, told.content) == (200, b"") and got.content
    for name in ("content-type", "content-length"):
        assert told.headers[name] == got.headers[name] or path == "/metrics"


@pytest.mark.parametrize("path", ["/health", "/v1", "/"], ids=["health", "v1", "root"])
def test_health_is_told_where_probes_ask(server: Server, path: str) -> None:
    assert server.get(path).json() == server.get("/ping").json() == {"status": "ready", "reason": None}


def ask_app(method: str, path: str, **settings: Any) -> httpx.Response:
    """Ask a server that is still loading its model."""

    async def ask() -> httpx.Response:
        app = create_app(ServerState(Settings(**settings)), Exchanges())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.request(method, path)

    return asyncio.run(ask())


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_no_probe_takes_loading_for_health(method: str) -> None:
    assert [ask_app(method, path).status_code for path in ("/ping", "/ping/", "/health", "/v1", "/")] == [503] * 5


def test_http_1_0_probe_is_answered_and_closed(connection: socket.socket) -> None:
    send(connection, "GET /ping HTTP/1.0")
    status, headers, body = read(connection)
    assert (status, headers["connection"], int(headers["content-length"])) == (200, "close", len(body))
    assert is_closed(connection)


def test_http_1_0_request_is_generated(connection: socket.socket) -> None:
    send(connection, "POST /invocations HTTP/1.0", "Connection: Keep-Alive", body=BODY)
    status, headers, body = read(connection)
    assert (status, int(headers["content-length"])) == (200, len(body)) and json.loads(body)["choices"]
    assert is_closed(connection)


def test_closing_client_is_answered_and_closed(connection: socket.socket) -> None:
    send(connection, "GET /ping?x=y HTTP/1.1", "Host: a", "Connection: close")
    assert read(connection)[0] == 200 and is_closed(connection)


# Paths

PATHS = {
    "slash at the end": "/v1/chat/completions/",
    "slash in front": "//v1/chat/completions",
    "slash inside": "/v1//chat/completions",
    "no v1": "/chat/completions",
    "v1 twice": "/v1/v1/chat/completions",
    "percent-encoded": "/v1/chat%2Fcompletions",
    "query": "/v1/chat/completions?api-version=2026-01-01",
    "SageMaker's with a slash": "/invocations/",
    "SageMaker's with a query": "/invocations?x=y",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_path_is_served_as_meant(connection: socket.socket, server: Server, path: str) -> None:
    send(connection, f"POST {path} HTTP/1.1", "Host: a", "Content-Type: application/json", body=BODY)
    status, _, body = read(connection)  # without a redirect, which would lose the body
    expected = answer_of(server.post("/v1/chat/completions", json=CHAT))
    assert status == 200 and json.loads(body).items() >= expected.items()


def test_absolute_url_is_served(connection: socket.socket) -> None:
    send(connection, "GET http://example.com/ping HTTP/1.1", "Host: example.com")
    assert read(connection)[0] == 200


def test_request_without_host_is_served(connection: socket.socket) -> None:
    send(connection, "POST /invocations HTTP/1.1", body=BODY)
    assert read(connection)[0] == 200


def test_paths_count_as_the_one_meant(server: Server) -> None:
    for path in ("//invocations", "/invocations/"):
        server.post(path, json=CHAT)
    assert 'path="//' not in server.metrics() and 'path="/invocations/"' not in server.metrics()


def test_model_is_read_by_its_name(server: Server) -> None:
    (listed,) = server.get("/v1/models").json()["data"]
    assert server.get("/v1/models/tiny").json() == server.get("/models/tiny/").json() == listed


@pytest.mark.parametrize("name", ["other", "org/tiny", "org%2Ftiny"])
def test_model_of_other_name_is_missing(server: Server, name: str) -> None:
    response = server.get(f"/v1/models/{name}")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert name not in error["message"] and "GET /v1/models" in error["message"]


def test_model_name_may_have_slashes() -> None:
    response = ask_app("GET", "/v1/models/org%2Fmine", served_name="org/mine")
    assert (response.status_code, response.json()["id"]) == (200, "org/mine")


# What is not served

UNSERVED = {
    "responses": ("POST", "/v1/responses", "POST /v1/chat/completions"),
    "responses without v1": ("POST", "/responses", "POST /v1/chat/completions"),
    "embeddings": ("POST", "/v1/embeddings", "generates text and nothing else"),
    "audio": ("POST", "/v1/audio/transcriptions", "generates text and nothing else"),
    "files": ("POST", "/v1/files", "takes a batch's file itself, as JSON lines"),
    "batches": ("GET", "/v1/batches/batch_1", "takes a batch's file itself, as JSON lines"),
    "Ollama": ("GET", "/api/tags", "POST /v1/chat/completions"),
    "generate": ("POST", "/generate", "POST /invocations takes inputs"),
    "anything else": ("GET", "/nowhere", "generation is POST /invocations"),
}


@pytest.mark.parametrize("case", UNSERVED)
def test_unserved_path_tells_what_is_served(server: Server, case: str) -> None:
    method, path, told = UNSERVED[case]
    response = httpx.request(method, server.url + path, trust_env=False)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (404, "not_found", "invalid_request_error")
    assert told in error["message"]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/messages", {}),
        ("/v1/messages/count_tokens", {"anthropic-version": "2023-06-01"}),
        ("/v1/models/claude", {"anthropic-version": "2023-06-01"}),
    ],
    ids=["messages", "count_tokens", "a model"],
)
def test_anthropic_client_gets_its_own_error(server: Server, path: str, headers: dict[str, str]) -> None:
    method = "GET" if "models" in path else "POST"
    response = httpx.request(method, server.url + path, headers=headers, trust_env=False)
    answer = response.json()
    assert (response.status_code, answer["type"], answer["error"]["type"]) == (404, "error", "not_found_error")
    assert answer["error"].keys() == {"type", "message"}


def test_unserved_path_takes_body_to_its_end(connection: socket.socket) -> None:
    send(connection, "POST /v1/audio/transcriptions HTTP/1.1", "Host: a", body=b"a" * 5_000_000)
    assert read(connection)[0] == 404
    send(connection, "GET /ping HTTP/1.1", "Host: a")
    assert read(connection)[0] == 200


@pytest.mark.parametrize(
    ("first_line", "expected"),
    [("POST /v1/files HTTP/1.1", 404), ("PUT /invocations HTTP/1.1", 405), ("POST /ping HTTP/1.1", 200)],
    ids=["unserved path", "wrong method", "ping"],
)
def test_unsent_body_closes_the_connection(connection: socket.socket, first_line: str, expected: int) -> None:
    send(connection, first_line, "Host: a", "Content-Length: 100", "Expect: 100-continue")
    status, headers, _ = read(connection)
    # What it sent next on this connection would be taken for the body.
    assert (status, headers["connection"]) == (expected, "close") and is_closed(connection)


# Methods


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_wrong_method_is_told_the_right(server: Server, method: str) -> None:
    response = httpx.request(method, f"{server.url}/invocations", trust_env=False)
    assert (response.status_code, response.headers["allow"]) == (405, "OPTIONS, POST")
    assert "takes OPTIONS, POST only" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/ping", "GET, HEAD, OPTIONS, POST"), ("/v1/models", "GET, HEAD, OPTIONS"), ("/invocations", "OPTIONS, POST")],
    ids=["ping", "models", "invocations"],
)
def test_options_names_the_methods(server: Server, path: str, methods: str) -> None:
    response = httpx.options(server.url + path, trust_env=False)
    assert (response.status_code, response.headers["allow"], response.content) == (204, methods, b"")


def test_preflight_of_web_page_is_refused(server: Server) -> None:
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    response = httpx.options(f"{server.url}/v1/chat/completions", headers=asked, trust_env=False)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "cross_origin")
    assert not [name for name in response.headers if name.startswith("access-control-")]


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.parametrize(
    ("path", "expected"), [("/nowhere", 404), ("/invocations", 405)], ids=["unserved path", "wrong method"]
)
def test_error_of_head_has_no_body(connection: socket.socket, path: str, expected: int) -> None:
    send(connection, f"HEAD {path} HTTP/1.1", "Host: a", "Connection: close")
    answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 %d" % expected) and answer.endswith(b"\r\n\r\n")
    assert b"content-type: application/json" in answer


def test_refused_head_has_no_body(connection: socket.socket) -> None:
    send(connection, "HEAD /ping HTTP/1.1", "Content-Length: none")
    answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400") and answer.endswith(b"\r\n\r\n")


# Headers

HEADERS = {
    "events": {"Accept": "text/event-stream"},
    "lines": {"Accept": "application/jsonlines"},
    "compression": {"Accept-Encoding": "gzip, br, zstd"},
    "key": {"Authorization": "Bearer unused"},
    "Azure's key": {"api-key": "unused"},
    "name in capitals": {"ACCEPT": "*/*"},
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS.keys())
def test_header_changes_no_answer(server: Server, headers: dict[str, str]) -> None:
    response = server.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer_of(response) == answer_of(server.post("/v1/chat/completions", json=CHAT))
    assert response.headers["content-type"] == "application/json" and "content-encoding" not in response.headers


def test_chunked_body_is_read(server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        yield BODY[:10]
        yield BODY[10:]

    headers = {"content-type": "application/json"}
    response = httpx.post(f"{server.url}/invocations", content=chunks(), headers=headers, trust_env=False)
    assert response.request.headers["transfer-encoding"] == "chunked" and response.status_code == 200
