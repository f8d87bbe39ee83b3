"""Answers of a server, recorded without what differs each time, and compared with those of another build."""

from __future__ import annotations

import http.client
import json
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .requests import Request

HEADERS = (
    "content-type",
    "x-longhaul-deadline",
    "x-longhaul-finish-reason",
    "x-longhaul-job",
    "x-longhaul-resumed-tokens",
)
_TIMEOUT_S = 300
_NEUTRAL = (
    (re.compile(rb'"id":"(chatcmpl-|cmpl-|batch_req_)[0-9a-f]+"'), rb'"id":"\1"'),
    (re.compile(rb'"request_id":"[0-9a-f]+"'), b'"request_id":""'),
    (re.compile(rb'"created":[0-9]+'), b'"created":0'),
)
_DECIMALS = re.compile(r"-?[0-9]+\.[0-9]+(?:e-?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is kept: the body without ids and times, or only its shape."""

    name: str
    status: int
    headers: dict[str, str]
    body: str


def ask(url: str, request: Request) -> Answer:
    """Send a request on a connection of its own."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT_S)
    headers = {}
    if request.content_type is not None:
        headers["Content-Type"] = request.content_type
    if request.attributes is not None:
        headers["X-Amzn-SageMaker-Custom-Attributes"] = request.attributes
    try:
        connection.request(request.method, request.path, request.body or None, headers)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    kept = {name: value for name in HEADERS if (value := response.headers.get(name)) is not None}
    return Answer(request.name, response.status, kept, _shape_of(body) if request.by_shape else _neutral(body))


def _neutral(body: bytes) -> str:
    for pattern, instead in _NEUTRAL:
        body = pattern.sub(instead, body)
    return body.decode(errors="backslashreplace")


def _shape_of(body: bytes) -> str:
    """Return the names and types of an answer in JSON."""
    return json.dumps(_shape(json.loads(body)))


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shape(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_shape(element) for element in value]
    return type(value).__name__


def save(file: Path, answers: list[Answer]) -> None:
    file.write_text("".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers))


def load(file: Path) -> dict[str, Answer]:
    """Return recorded answers by their names."""
    answers = [Answer(**json.loads(line)) for line in file.read_text().splitlines()]
    return {answer.name: answer for answer in answers}


def differences(before: Answer, after: Answer) -> Iterator[str]:
    """Yield a sentence for each part of an answer that is another one. Numbers count as equal in three decimals."""
    if before.status != after.status:
        yield f"status {before.status} is {after.status}"
    for name in HEADERS:
        one, other = before.headers.get(name), after.headers.get(name)
        if one != other:
            yield f"header {name}: {one} is {other}"
    if before.body != after.body and _rounded(before.body) != _rounded(after.body):
        place = next(
            (index for index, (one, other) in enumerate(zip(before.body, after.body, strict=False)) if one != other),
            min(len(before.body), len(after.body)),
        )
        shown = slice(max(0, place - 60), place + 140)
        yield f"body at {place}:\n    before …{before.body[shown]}\n    after  …{after.body[shown]}"


def _rounded(body: str) -> str:
    """Round numbers: log probabilities differ in their last digits from batch to batch."""
    return _DECIMALS.sub(lambda number: f"{float(number[0]):.3f}", body)
