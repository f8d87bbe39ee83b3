"""A request as the gateway sees it: which service it is for, by headers and path alone, before its body is parsed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import parse_qsl, unquote

from starlette.types import Message, Receive, Scope

from endpoint.aws.query_wire import FORM
from endpoint.aws.wire import HttpRequest
from endpoint.origin_guard import host_name

_MAX_BODY_BYTES = 8 << 20
_MAX_FIELDS = 100_000
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
_CBOR_PATH = re.compile(r"/service/.*(?:granite|cloudwatch).*/operation/", re.IGNORECASE)
_VIRTUAL_HOST = re.compile(r"(?P<bucket>[a-z0-9][a-z0-9.-]+?)(?:\.s3(?:[.-][a-z0-9-]+)*)?\.localhost")


class BodyTooLarge(Exception):
    """The body is longer than the operation allows."""


class ClientGone(Exception):
    """The client closed the connection before its request was whole."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Result of a handler for a request that the backend is to answer."""

    on_taken: Callable[[], None] | None = None
    """Called once the backend has taken the request (2xx), before the client hears of it."""


class Request:
    """A request as a handler gets it. Its body is read once, whole or streamed; after `whole` it can be read again."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        """Path, percent-decoded."""
        self.query: str = scope["query_string"].decode("latin-1")
        """Query string as it came."""
        self.headers: dict[str, str] = {}
        """Headers by their names in lower case; the values of one that came twice are joined with a comma."""
        for raw_name, raw_value in scope["headers"]:
            name = raw_name.decode("latin-1")
            try:
                value = raw_value.decode()  # AWS's clients send UTF-8 where they send more than ASCII
            except UnicodeDecodeError:
                value = raw_value.decode("latin-1")
            self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value
        self.address: str = (scope.get("server") or [""])[0]
        """Address of this machine to which it came."""
        self.peer: str = (scope.get("client") or [""])[0]
        """Address that it came from."""
        self._receive = receive
        self._whole: HttpRequest | None = None
        self._again: list[Message] = []

    @cached_property
    def service(self) -> str:
        """Name that the request is signed for, else that of its X-Amz-Target; "" where only the backend can tell."""
        target = self.headers.get("x-amz-target", "").partition(".")[0]
        name = _TARGETS.get(target) or self._signed_name() or target
        if name in ("", "sagemaker") and self.path.startswith("/endpoints/"):
            return "sagemaker-runtime"
        if name == "" and _CBOR_PATH.search(self.path):
            return "monitoring"
        return name

    @cached_property
    def bucket(self) -> str | None:
        """Bucket of `bucket.localhost`, `bucket.s3.localhost` and `bucket.s3.us-east-1.localhost`."""
        host = _VIRTUAL_HOST.fullmatch(host_name(self.headers["host"])) if self.service in ("s3", "") else None
        if host is None or host["bucket"] == "s3" or host["bucket"].startswith(("s3.", "s3-")):
            return None
        return host["bucket"]

    async def body(self, limit: int = _MAX_BODY_BYTES) -> bytes:
        """Read it whole. Raises BodyTooLarge, ClientGone."""
        parts: list[bytes] = []
        size = 0
        async for part in self.stream():
            size += len(part)
            if size > limit:
                raise BodyTooLarge(f"the request's body is longer than {limit} bytes")
            parts.append(part)
        return b"".join(parts)

    async def whole(self) -> HttpRequest:
        """Read all of it, as often as wanted, and before it is forwarded. Raises BodyTooLarge, ClientGone."""
        if self._whole is None:
            body = await self.body()
            self._again = [{"type": "http.request", "body": body, "more_body": False}]
            self._whole = HttpRequest(
                method=self.method, path=self.path, headers=self.headers, body=body, query=self.query
            )
        return self._whole

    async def actions(self) -> set[str]:
        """Return the operations that a request without a signature names by the query protocol. Raises as `whole`."""
        texts = [self.query]
        if self.method == "POST" and self.headers.get("content-type", "").startswith(FORM):
            texts.append((await self.whole()).body.decode(errors="replace"))
        elif self.method != "GET":
            return set()
        return {value for text in texts if "Action" in text for name, value in _fields(text) if name == "Action"}

    async def receive(self) -> Message:
        """Return the connection's next event, for what forwards the request."""
        return self._again.pop() if self._again else await self._receive()

    async def stream(self) -> AsyncIterator[bytes]:
        """Read it in parts. Raises ClientGone."""
        more = True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            more = message.get("more_body", False)
            if part := message.get("body", b""):
                yield part

    def _signed_name(self) -> str:
        authorization = self.headers.get("authorization", "")
        if authorization.startswith("AWS "):  # version 2 of the signature
            return "s3"
        found = _CREDENTIAL.search(authorization) if authorization else _PRESIGNED.search(self.query)
        if found is None:
            return ""
        scope = unquote(found[1]).split("/")  # key/date/region/service/aws4_request; without a region in version 4A
        return scope[-2] if len(scope) >= 4 else ""


def _fields(text: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        return []
