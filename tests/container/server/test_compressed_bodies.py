"""Compressed and undeclared bodies through the socket: answered as plain ones are."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import psutil
import pytest
from backports import zstd

from testing.server import Server

LIMIT = 30_000_000
"""Largest body of the shared server."""
COMPLETION = {"prompt": "The sea is", "max_tokens": 5, "seed": 7}
LINES = (
    b'{"prompt": "The sea is", "max_tokens": 5, "seed": 7}\n'
    b'{"inputs": "The sky is", "parameters": {"max_new_tokens": 5}}\n'
)
JSON = {"content-type": "application/json"}
JSON_LINES = {"content-type": "application/jsonlines"}
TEXT = {"content-type": "text/plain", "X-Amzn-SageMaker-Custom-Attributes": "max_new_tokens=5"}
ENCODERS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "zstd": zstd.compress}


def told(response: httpx.Response) -> Any:
    """Return what an answer says, without what is new in each."""
    assert response.status_code == 200, response.text
    lines = [json.loads(line) for line in response.text.splitlines()]
    return [line.get("choices") if isinstance(line, dict) else line for line in lines]


@pytest.mark.parametrize("coding", ENCODERS)
@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/invocations", JSON, json.dumps(COMPLETION).encode()),
        ("/invocations", JSON_LINES, LINES),
        ("/invocations", TEXT, b"The sea is"),
        ("/v1/completions", JSON, json.dumps(COMPLETION).encode()),
    ],
    ids=["document", "lines", "text", "completions"],
)
def test_compressed_body_answers_like_plain_one(
    server: Server, coding: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    plain = server.post(path, content=body, headers=headers)
    coded = server.post(path, content=ENCODERS[coding](body), headers=headers | {"content-encoding": coding})
    undeclared = server.post(path, content=ENCODERS[coding](body), headers=headers)
    if headers["content-type"] == "text/plain":
        assert plain.status_code == 200
        assert plain.text == coded.text == undeclared.text
    else:
        assert told(plain) == told(coded) == told(undeclared)


@pytest.mark.parametrize("headers", [{}, {"content-type": "binary/octet-stream"}, {"content-type": "application/gzip"}])
@pytest.mark.parametrize("body", [LINES, gzip.compress(LINES), zstd.compress(LINES)], ids=["plain", "gzip", "zstd"])
def test_lines_without_content_type_are_batch(server: Server, headers: dict[str, str], body: bytes) -> None:
    answer = server.post(content=body, headers=headers)
    assert answer.headers["content-type"] == "application/jsonlines"
    assert told(answer) == told(server.post(content=LINES, headers=JSON_LINES))


def test_document_without_content_type_is_one(server: Server) -> None:
    whole = json.dumps(COMPLETION, indent=1).encode()
    for body in (whole, whole + b"\n", json.dumps(COMPLETION).encode() + b"\r\n"):
        answer = server.post(content=body)
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["object"] == "text_completion"


def test_several_documents_as_json_are_refused(server: Server) -> None:
    error = server.post(content=LINES, headers=JSON).json()["error"]
    assert error["code"] == "invalid_json" and "JSON lines" in error["message"]


def test_compressed_and_plain_body_are_same_job(server: Server) -> None:
    headers = JSON_LINES | {"X-Amzn-SageMaker-Custom-Attributes": "job=compressed-and-plain"}
    plain = server.post(content=LINES, headers=headers)
    coded = server.post(content=gzip.compress(LINES), headers=headers | {"content-encoding": "gzip"})
    assert told(plain) == told(coded)
    assert coded.headers["x-longhaul-job"] == "compressed-and-plain"
    other = server.post(content=gzip.compress(LINES + LINES), headers=headers)
    assert other.status_code == 409


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize(("headers", "limit"), [(JSON_LINES, LIMIT), (JSON, 100_000), ({}, 100_000)])
def test_bomb_is_refused_at_body_limit(server: Server, coding: str, headers: dict[str, str], limit: int) -> None:
    bomb = ENCODERS[coding](bytes(LIMIT + 1))
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    response = server.post(content=bomb, headers=headers | {"content-encoding": coding})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert f"is larger than {limit} bytes" in response.json()["error"]["message"]
    assert process.memory_info().rss < before + (32 << 20)


def test_body_of_exactly_the_limit_is_read(server: Server) -> None:
    blank = b" " * 49_999 + b"\n"
    padded = (LINES + blank * 600)[:LIMIT]
    response = server.post(content=gzip.compress(padded), headers=JSON_LINES | {"content-encoding": "gzip"})
    assert len(told(response)) == 2


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, zstd"])
def test_other_coding_gives_415_with_accepted_ones(server: Server, coding: str) -> None:
    response = server.post(content=b"canary", headers=JSON | {"content-encoding": coding})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (415, "unsupported_content_encoding")
    assert response.headers["accept-encoding"] == "gzip, zstd"
    assert server.post(content=json.dumps(COMPLETION), headers=JSON).status_code == 200


@pytest.mark.parametrize(
    "body", [gzip.compress(LINES)[:-5], gzip.compress(LINES) + b"canary", LINES], ids=["torn", "followed", "plain"]
)
def test_broken_gzip_gives_400(server: Server, body: bytes) -> None:
    response = server.post(content=body, headers=JSON_LINES | {"content-encoding": "gzip"})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "body", "invalid_content_encoding")


def test_utf_16_file_gives_400_that_names_it(server: Server) -> None:
    response = server.post(content=LINES.decode().encode("utf-16"), headers=JSON_LINES)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unreadable_batch")
    assert "UTF-16" in error["message"]
