"""Errors as responses, and what all responses are counted as."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from container.dialects.encoding import encode
from container.errors import RequestError

OUTCOMES = {2: "ok", 3: "ok", 4: "client_error", 5: "server_error"}
"""Outcomes that answers are counted as, by the first digit of the HTTP status."""

AnthropicErrorType = Literal["not_found_error", "permission_error", "invalid_request_error"]
_ANTHROPIC_TYPES: dict[int, AnthropicErrorType] = {403: "permission_error", 404: "not_found_error"}


class AnthropicErrorDetail(Struct):
    type: AnthropicErrorType
    message: str


class AnthropicError(Struct):
    """The error object that Anthropic's clients read."""

    type: Literal["error"]
    error: AnthropicErrorDetail


def json_response(value: object, status: int = 200) -> Response:
    return Response(encode(value), status_code=status, media_type="application/json")


def error_response(error: RequestError) -> Response:
    response = json_response(error.body(), error.status)
    response.headers.update(error.headers)
    return response


def error_response_for(request: Request, error: RequestError) -> Response:
    """Return the error in the form of the client that asks, which may be Anthropic's: for it, nothing is served."""
    path = request.scope["path"]
    if "anthropic-version" not in request.headers and not path.startswith(("/v1/messages", "/v1/complete/")):
        return error_response(error)
    detail = AnthropicErrorDetail(_ANTHROPIC_TYPES.get(error.status, "invalid_request_error"), error.message)
    return json_response(AnthropicError("error", detail), error.status)
