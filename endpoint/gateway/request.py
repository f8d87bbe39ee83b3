"""A request as the gateway sees it: whose it is, by headers and path alone, before anybody parses it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Protocol
from urllib.parse import unquote

from starlette.types import Receive, Scope

from endpoint.origin_guard import host_name

_BODY_LIMIT = 8 << 20


class Answer(Protocol):
    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...


class BodyTooLarge(Exception):
    """The body is longer than the operation allows."""


class ClientGone(Exception):
    """The client closed the connection before its request was whole."""


class Request:
    """What a handler gets. The body is read once, whole or streamed."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        """Percent-decoded."""
        self.query: str = scope["query_string"].decode("latin-1")
        """As it came."""
        self.headers: Mapping[str, str] = _headers(scope)
        """Names in lower case; one that came twice is joined with a comma."""
        self._receive = receive

    async def body(self, limit: int = _BODY_LIMIT) -> bytes:
        """Raises BodyTooLarge, ClientGone."""
        parts: list[bytes] = []
        size = 0
        async for part in self.stream():
            size += len(part)
            if size > limit:
                raise BodyTooLarge(f"the request's body is longer than {limit} bytes")
            parts.append(part)
        return b"".join(parts)

    async def stream(self) -> AsyncIterator[bytes]:
        """Raises ClientGone."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            more = message.get("more_body", False)
            if part := message.get("body", b""):
                yield part


def service_of(path: str, headers: Mapping[str, str], query: str) -> str:
    """By the name that the request is signed for; "" where only the backend can tell."""
    target = headers.get("x-amz-target", "").partition(".")[0]
    name = _signed_for(headers.get("authorization", ""), query)
    if not name and target:
        name = _TARGETS.get(target, target)
    if name in ("", "sagemaker") and path.startswith("/endpoints/"):
        return "sagemaker-runtime"
    return name


_TARGETS = {
    "SageMaker": "sagemaker",
    "AnyScaleFrontendService": "application-autoscaling",
    "AmazonSQS": "sqs",
    "Logs_20140328": "logs",
    "GraniteServiceVersion20100801": "monitoring",
    "AmazonEC2ContainerRegistry_V20150921": "ecr",
}
_CREDENTIAL = re.compile(r"Credential=([^,\s]+)")
_PRESIGNED = re.compile(r"(?:^|&)X-Amz-Credential=([^&]+)", re.IGNORECASE)


def _signed_for(authorization: str, query: str) -> str:
    if authorization.startswith("AWS "):  # version 2 of the signature
        return "s3"
    found = _CREDENTIAL.search(authorization) if authorization else _PRESIGNED.search(query)
    if found is None:
        return ""
    scope = unquote(found[1]).split("/")  # key/date/region/service/aws4_request; without a region in version 4A
    return scope[-2] if len(scope) >= 4 else ""


_VIRTUAL_HOST = re.compile(r"(?P<bucket>[a-z0-9][a-z0-9.-]+?)(?:\.s3(?:[.-][a-z0-9-]+)*)?\.localhost")


def bucket_of(host: str) -> str | None:
    """Of `bucket.localhost`, `bucket.s3.localhost` and `bucket.s3.us-east-1.localhost`."""
    found = _VIRTUAL_HOST.fullmatch(host_name(host))
    if found is None or found["bucket"] == "s3" or found["bucket"].startswith(("s3.", "s3-")):
        return None
    return found["bucket"]


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), _text(raw_value)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _text(value: bytes) -> str:
    """AWS's clients send UTF-8 where they send more than ASCII."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
