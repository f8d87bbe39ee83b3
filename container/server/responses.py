"""Errors as responses, and what all responses are counted as."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from container.errors import RequestError

OUTCOMES = {2: "ok", 3: "ok", 4: "client_error", 5: "server_error"}
"""Outcomes that answers are counted as, by the first digit of the HTTP status."""


def error_response(error: RequestError) -> Response:
    return Response(msgspec.json.encode(error.body()), status_code=error.status, media_type="application/json")
