"""The common ground of AWS's protocols: a request, an operation's name, and the forms of an answer."""

from __future__ import annotations

import uuid
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.model import OperationModel, ServiceModel
from starlette.responses import Response

from endpoint.aws.errors import AwsError, FormError
from endpoint.aws.values import write_scalar, write_value

MAX_CONTENT_BYTES = 8 << 20
"""Bytes of a body after its decompression."""
_QUERY_CODES = {"UnknownOperationException": "InvalidAction", "SerializationException": "MalformedInput"}
"""Codes of the query protocol for those that the other protocols have for the same mistakes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request as it came, with its body whole."""

    method: str
    path: str
    """Path, percent-decoded."""
    headers: Mapping[str, str]
    """Headers by their names in lower case."""
    body: bytes = b""
    query: str = ""
    """Query string as it came."""

    def content(self) -> bytes:
        """Return the body, decompressed. Raises AwsError for an unknown coding, and beyond MAX_CONTENT_BYTES."""
        match self.headers.get("content-encoding", "identity").strip().lower():
            case "identity" | "":
                return self.body
            case "gzip":
                return _gunzip(self.body)
        raise FormError("SerializationException", "The request's Content-Encoding is not gzip")


class Wire(ABC):
    """One protocol of one service: requests in, responses and errors out. Knows no operation by name."""

    content_type: str

    def __init__(self, model: ServiceModel) -> None:
        self._model = model
        self._names = frozenset(model.operation_names)
        self._errors: dict[str, Any] = {}
        for shape in model.error_shapes:
            if shape.error_code not in self._errors or shape.name == shape.error_code:
                self._errors[shape.error_code] = shape
        self._is_query_compatible = "awsQueryCompatible" in model.metadata

    @abstractmethod
    def operation(self, request: HttpRequest) -> tuple[str, dict[str, str]]:
        """Return the operation's name and its path's parameters. Raises AwsError for an unknown one."""

    @abstractmethod
    def parse(self, operation: str, path_parameters: Mapping[str, str], request: HttpRequest) -> dict[str, Any]:
        """Return the operation's parameters. Raises Unreadable for a wrong type, AwsError for an unreadable body."""

    @abstractmethod
    def response(self, operation: str, result: dict[str, Any]) -> Response:
        """Return an operation's result in its wire form."""

    @abstractmethod
    def error_response(self, error: AwsError, headers: Mapping[str, str]) -> Response:
        """Return an error in its wire form. `headers` are the request's."""

    def _operation_model(self, name: str) -> OperationModel:
        return self._model.operation_model(name)

    def _error_shape(self, error: AwsError) -> tuple[Any, int]:
        """Return the shape of an error, if the model has it, and its status."""
        shape = self._errors.get(error.code)
        status = shape.metadata.get("error", {}).get("httpStatusCode", error.status) if shape else error.status
        return shape, status

    def _error_headers(self, error: AwsError, shape: Any, status: int, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of an error in JSON or CBOR; clients that ask for query codes get these, too."""
        answer = {"x-amzn-errortype": shape.name if shape else error.code, "content-type": self.content_type}
        if self._is_query_compatible and headers.get("x-amzn-query-mode", "").lower() == "true":
            answer["x-amzn-query-error"] = f"{query_code(error)};{sender_or_receiver(status)}"
        return answer | request_id()


def query_code(error: AwsError) -> str:
    """Return the code of an error in the query protocol."""
    return _QUERY_CODES.get(error.code, error.code)


def sender_or_receiver(status: int) -> str:
    """Return the query protocol's word for who is at fault."""
    return "Sender" if status < 500 else "Receiver"


def error_body(error: AwsError, shape: Any, scalar: Callable[[Any, Any], Any] = write_scalar) -> dict[str, Any]:
    """Return an error's members, with scalars as `scalar` writes them.

    Modelled errors name their message as their shape does; those that AWS's front finds have `message`, and so have
    those whose shape has none.
    """
    if isinstance(error, FormError):
        return {"message": error.message}
    if shape is None:
        return {"message": error.message} | error.members
    name = next((name for name in shape.members if name.lower() == "message"), None)
    message = {name: error.message} if name else {}
    body = {} if name else {"message": error.message}
    written: dict[str, Any] = write_value(shape, message | error.members, scalar)
    return body | written


def request_id() -> dict[str, str]:
    """Return the header with a new request's id."""
    return {"x-amzn-requestid": str(uuid.uuid4())}


def _gunzip(data: bytes) -> bytes:
    decoder = zlib.decompressobj(wbits=31)
    try:
        content = decoder.decompress(data, MAX_CONTENT_BYTES + 1)
    except zlib.error:
        raise FormError("SerializationException", "The request's body is not gzip") from None
    if len(content) > MAX_CONTENT_BYTES:
        message = f"The request's body is longer than {MAX_CONTENT_BYTES} bytes when decompressed"
        raise FormError("RequestEntityTooLargeException", message, 413)
    if not decoder.eof or decoder.unused_data:
        raise FormError("SerializationException", "The request's body is not one whole gzip stream")
    return content
