"""The protocol smithy-rpc-v2-cbor: the path names service and operation, and the bodies are CBOR (RFC 8949)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cbor2
from starlette.responses import Response

from endpoint.aws.errors import AwsError, FormError
from endpoint.aws.values import Epoch, Unreadable, epoch_ms, read_value, write_value
from endpoint.aws.wire import HttpRequest, Wire, error_body, request_id

PROTOCOL = "rpc-v2-cbor"
"""Value of the header smithy-protocol in requests and responses."""
_PATH = re.compile(r"/service/(?:[^/]*\.)?(?P<service>[^/.]+)/operation/(?P<operation>[^/]+)")
_MAX_DEPTH = 32
"""Containers within each other: far more than any request's shape has."""
_MAX_BYTES = 2 << 20
"""Bytes of a body: CBOR needs one for an empty map, which takes 64 in memory. AWS takes 1 MB of metric data."""


class CborWire(Wire):
    """Knows the service by the name that the path has for it, which is its target prefix in JSON."""

    content_type = "application/cbor"

    def operation(self, request: HttpRequest) -> tuple[str, dict[str, str]]:
        match = _PATH.fullmatch(request.path)
        service = self._model.metadata["targetPrefix"]
        if request.method != "POST" or match is None or match["service"] != service:
            raise FormError("UnknownOperationException", f"Unknown operation {request.method} {request.path}", 404)
        if match["operation"] not in self._names:
            raise FormError("UnknownOperationException", f"Unknown operation: {match['operation']}", 404)
        return match["operation"], {}

    def parse(self, operation: str, path_parameters: Mapping[str, str], request: HttpRequest) -> dict[str, Any]:
        shape = self._operation_model(operation).input_shape
        content = request.content()
        value = _load(content) if content else {}
        parameters: dict[str, Any] = read_value(shape, value) if shape else {}
        return parameters

    def response(self, operation: str, result: dict[str, Any]) -> Response:
        shape = self._operation_model(operation).output_shape
        headers = {"smithy-protocol": PROTOCOL, **request_id()}
        if shape is None:
            return Response(b"", 200, headers)
        body = cbor2.dumps(write_value(shape, result, _write_scalar))
        return Response(body, 200, headers | {"content-type": self.content_type})

    def error_response(self, error: AwsError, headers: Mapping[str, str]) -> Response:
        shape, status = self._error_shape(error)
        body = error_body(error, shape, _write_scalar)
        content = cbor2.dumps({"__type": shape.name if shape else error.code} | body)
        answer = self._error_headers(error, shape, status, headers) | {"smithy-protocol": PROTOCOL}
        return Response(content, status, answer)


def _load(content: bytes) -> Any:
    """Return the one value that `content` is. Raises Unreadable, AwsError.

    No tag but a time's is decoded: others could name values again and again, or make more of them than there are.
    """
    if len(content) > _MAX_BYTES:
        message = f"The request's body is longer than {_MAX_BYTES} bytes of CBOR"
        raise FormError("RequestEntityTooLargeException", message, 413)
    stream = io.BytesIO(content)
    try:
        value = cbor2.load(stream, max_depth=_MAX_DEPTH, semantic_decoders=_TAGS)
    except (cbor2.CBORDecodeError, ValueError, OverflowError) as error:
        raise Unreadable(f"The request's body is not CBOR: {error}") from None
    if stream.read(1):
        raise Unreadable("The request's body has more than one value of CBOR")
    return value


class _Tags(Mapping[int, Callable[[Any, bool], Any]]):
    """The decoders of all tags: a time's, and one for each other that refuses it."""

    def __getitem__(self, tag: int) -> Callable[[Any, bool], Any]:
        return _epoch if tag == 1 else _refuse

    def __iter__(self) -> Iterator[int]:
        return iter((1,))

    def __len__(self) -> int:
        return 1


_TAGS = _Tags()


def _epoch(value: Any, is_immutable: bool) -> Epoch:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a time is a number")
    return Epoch(value)


def _refuse(value: Any, is_immutable: bool) -> Any:
    raise ValueError("a tag other than a time's")


def _write_scalar(shape: Any, value: Any) -> Any:
    match shape.type_name:
        case "timestamp":
            return cbor2.CBORTag(1, epoch_ms(value))
        case "float" | "double":
            return float(value)
    return value
