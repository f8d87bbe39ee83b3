"""Responses: errors, and answers with what their headers say."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from starlette.responses import Response, StreamingResponse

from container.disk.ordered_spool import OrderedSpool, close_soon
from container.disk.spool import Spool
from container.errors import RequestError
from container.invocations.invocation import Invocation


def outcome_of(status: int) -> str:
    """Return how an answer with this HTTP status is counted."""
    return "ok" if status < 400 else "client_error" if status < 500 else "server_error"


def error_response(error: RequestError) -> Response:
    return Response(msgspec.json.encode(error.body()), status_code=error.status, media_type="application/json")


def answer_response(body: bytes | Spool | OrderedSpool, content_type: str, invocation: Invocation) -> Response:
    """Return the response with an invocation's answer, which tells where the deadline left something unfinished.

    A text can't tell it in its body, and the content type is the only header that SageMaker keeps: it is in the
    notification and with the object. A spool is closed once it is sent.
    """
    if invocation.unfinished and content_type.startswith("text/plain"):
        content_type += "; finish_reason=deadline"
    if isinstance(body, bytes):
        response = Response(body, media_type=content_type)
    else:
        headers = {"content-length": str(body.size)}
        response = StreamingResponse(_send_and_close(body), media_type=content_type, headers=headers)
    attachment = invocation.attachment
    if attachment is not None and attachment.job.name is not None:
        response.headers["x-longhaul-job"] = attachment.job.name
    if attachment is not None and attachment.resumed_tokens:
        response.headers["x-longhaul-resumed-tokens"] = str(attachment.resumed_tokens)
    if invocation.unfinished:
        response.headers["x-longhaul-finish-reason"] = "deadline"
    return response


async def _send_and_close(answer: Spool | OrderedSpool) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.chunks():
            yield chunk
    finally:
        close_soon(answer)
