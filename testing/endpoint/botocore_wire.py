"""Clients of botocore, in the protocol that a test wants, whose requests may end in a function instead of a socket."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

import boto3
import botocore.session
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from starlette.responses import Response

Respond = Callable[[str, str, Mapping[str, str], bytes], Response]
"""Function of a request's method, path, headers in lower case, and body."""


class _Raw(io.BytesIO):
    def stream(self, **_: Any) -> Any:
        yield self.read()


@cache
def session(protocol: str | None = None, key: str = "0" * 12, token: str | None = None) -> boto3.session.Session:
    """Return a session whose clients speak a protocol of their service's model; by default the one that they choose."""
    core = botocore.session.Session()
    if protocol is not None:
        loader = core.get_component("data_loader")
        load = loader.load_service_model

        def load_one_protocol(*arguments: Any, **options: Any) -> dict[str, Any]:
            model: dict[str, Any] = load(*arguments, **options)
            if metadata := model.get("metadata"):  # endpoints are models, too, for the loader
                assert protocol in metadata["protocols"]
                model = model | {"metadata": metadata | {"protocol": protocol, "protocols": [protocol]}}
            return model

        loader.load_service_model = load_one_protocol
    return boto3.session.Session(
        aws_access_key_id=key,
        aws_secret_access_key="none",
        aws_session_token=token,
        region_name="us-east-1",
        botocore_session=core,
    )


def client(
    service: str,
    respond: Respond | None = None,
    url: str = "http://127.0.0.1:9",
    protocol: str | None = None,
    key: str = "0" * 12,
    **config: Any,
) -> Any:
    """Return a client with dummy keys that never retries. With `respond`, it sends nothing."""
    made = session(protocol, key).client(
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
