"""Errors of a request, and the HTTP status of each.

RequestError
├── InvalidRequest      400  a field is wrong; `param` names it
├── Forbidden           403  web pages of other origins may not call
├── NotFound            404  there is no such path or model
├── MethodNotAllowed    405  the path does not take this method
├── ClientTimeout       408  the client kept us waiting
├── Conflict            409  the request contradicts another one
├── TooLarge            413  the body is over a limit
├── URLTooLong          414  the URL is over its limit
├── UnsupportedMedia    415  no dialect for this content type, or no decoder for this content coding
├── HeadTooLarge        431  the headers are over their limit
├── EngineFailure       500  the engine died, and no other will come
├── SequenceFailure     500  the engine goes on without this prompt: it could not take it, or died of it
├── Unavailable         503  starting, draining or failed
├── DeadlineExceeded    504  the deadline came first
└── OutOfSpace          507  memory or disk is full

Messages carry the numbers and never quote the user's text: SageMaker copies error bodies into its logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

ErrorType = Literal["invalid_request_error", "server_error"]


class ErrorDetail(Struct, forbid_unknown_fields=True):
    message: Annotated[str, Meta(description="says what was expected, and never quotes the request")]
    type: ErrorType
    param: Annotated[str | None, Meta(description="the field, in the request's own words")]
    code: str
    job: Annotated[str | UnsetType | None, Meta(description="at a shutdown: the request's own name for its job")] = (
        UNSET
    )
    resumable: Annotated[
        bool | UnsetType | None,
        Meta(description="at a shutdown: whether the same request, sent again, goes on where it was"),
    ] = UNSET


class ErrorBody(Struct, forbid_unknown_fields=True):
    """The error object of every dialect."""

    error: ErrorDetail


class RequestError(Exception):
    """A request, or one item of a batch, that ends without a result."""

    status = 500
    type: ErrorType = "server_error"
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """`facts` are further fields of the error object, `job` and `resumable`."""
        super().__init__(message)
        self.facts = dict(facts or {})
        self.headers: dict[str, str] = {}
        """Headers of the answer that the status asks for."""
        self.message = message
        self.param = param
        self.code = code or type(self).code

    def body(self) -> ErrorBody:
        return ErrorBody(ErrorDetail(self.message, self.type, self.param, self.code, **self.facts))


class InvalidRequest(RequestError):
    """A field is missing, unknown, of the wrong type or out of range."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class Forbidden(RequestError):
    """A browser asks whether a web page may call."""

    status = 403
    type = "invalid_request_error"
    code = "cross_origin"


class NotFound(RequestError):
    """There is no such path, or no such model."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(RequestError):
    """The path does not take this method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class ClientTimeout(RequestError):
    """The client sent nothing for longer than it may."""

    status = 408
    type = "invalid_request_error"
    code = "client_timeout"


class Conflict(RequestError):
    """The request contradicts another one."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class TooLarge(RequestError):
    """The body is larger than a limit."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class URLTooLong(RequestError):
    """The URL is longer than any of ours."""

    status = 414
    type = "invalid_request_error"
    code = "url_too_long"


class UnsupportedMedia(RequestError):
    """No dialect reads this content type, or nothing decodes this content coding."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_type"


class HeadTooLarge(RequestError):
    """Headers, trailers or the framing of chunks are larger than anyone needs."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class EngineFailure(RequestError):
    """The engine died before the request was done, and no other will come."""

    code = "engine_failed"


class SequenceFailure(RequestError):
    """The engine goes on without this prompt: it could not take it, or died of it (`engine_killed_by_item`)."""

    code = "sequence_failed"


class Unavailable(RequestError):
    """The server is starting, draining or failed."""

    status = 503
    code = "unavailable"


class DeadlineExceeded(RequestError):
    """The deadline came before there was anything to show."""

    status = 504
    code = "deadline_exceeded"


class OutOfSpace(RequestError):
    """Memory or disk is full."""

    status = 507
    code = "out_of_space"
