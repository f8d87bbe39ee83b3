"""An unmodified botocore client whose requests end in a function instead of a socket."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import boto3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from starlette.responses import Response

Respond = Callable[[str, str, Mapping[str, str], bytes], Response]
"""Function of a request's method, path, headers in lower case, and body."""

SESSION = boto3.session.Session(aws_access_key_id="0" * 12, aws_secret_access_key="none", region_name="us-east-1")


class _Raw(io.BytesIO):
    def stream(self, **_: Any) -> Any:
        yield self.read()


def client(service: str, respond: Respond | None = None, url: str = "http://127.0.0.1:9", **config: Any) -> Any:
    """Return a client with dummy keys that never retries. With `respond`, it sends nothing."""
    made = SESSION.client(
        service, endpoint_url=url, config=Config(retries={"total_max_attempts": 1}, proxies={}, **config)
    )
    if respond is not None:

        def answer(request: AWSPreparedRequest, **_: Any) -> AWSResponse:
            headers = {
                name.lower(): value.decode("latin-1") if isinstance(value, bytes) else value
                for name, value in request.headers.items()
            }
            body = request.body.read() if hasattr(request.body, "read") else request.body or b""
            body = body.encode() if isinstance(body, str) else bytes(body)
            response = respond(request.method, unquote(urlsplit(request.url).path), headers, body)
            return AWSResponse(request.url, response.status_code, response.headers, _Raw(response.body))

        made.meta.events.register("before-send", answer)
    return made
