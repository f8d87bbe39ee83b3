"""An exchange: one HTTP request and its one answer, whatever happens between."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .errors import RequestError, Unavailable
from .telemetry import invocation_id, outcome_of

if TYPE_CHECKING:
    from .edge import Edge

logger = logging.getLogger(__name__)

INFERENCE_ID = "x-amzn-sagemaker-inference-id"
_CLIENT_GONE = 499
"""nginx's status for a client that went away: it reaches the log only."""


class Exchange:
    """Owns the task that works on the request, so that a client's leaving or a shutdown can end it."""

    def __init__(self, edge: Edge, request: Request) -> None:
        given = request.headers.get(INFERENCE_ID, "")
        self.id = given if re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", given) else uuid.uuid4().hex
        self.request = request
        self.fields: dict[str, object] = {}
        """What the request's log line says beside status and duration."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._edge = edge
        self._work: asyncio.Task[Response] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._verdict: RequestError | None = None
        self._client_gone = False

    async def answer(self, work: Callable[[Exchange], Awaitable[Response]]) -> Response:
        """Run `work` to its answer. Every way it can end becomes a response and a log line."""
        started = time.monotonic()
        token = invocation_id.set(self.id)
        self._edge.exchanges.add(self)
        status = _CLIENT_GONE
        try:
            self._work = asyncio.ensure_future(_coroutine(work(self)))
            response = await self._settle()
            status = _CLIENT_GONE if self._client_gone else response.status_code
            response.headers["x-longhaul-invocation-id"] = self.id
            return response
        finally:
            if self._watch is not None:
                self._watch.cancel()
            self._edge.exchanges.discard(self)
            self.ended.set_result(None)
            self._count(status, time.monotonic() - started)
            invocation_id.reset(token)

    def watch_for_disconnect(self) -> None:
        """From now on, end the work if the client goes away. Only once the body has been read."""
        self._watch = asyncio.create_task(self._wait_for_disconnect())

    def abort(self, error: RequestError) -> None:
        """End the work; the client gets the error."""
        self._verdict = error
        if self._work is not None:
            self._work.cancel()

    async def _settle(self) -> Response:
        assert self._work is not None
        try:
            await asyncio.wait([self._work])
            return self._work.result()
        except RequestError as error:
            return error_response(error)
        except (ClientDisconnect, asyncio.CancelledError):
            if not self._work.done():  # it is this task that was cancelled
                self._work.cancel()
                raise
            self._client_gone = self._verdict is None
            return error_response(self._verdict or Unavailable("the client went away", code="client_gone"))
        except Exception:
            logger.exception("a request failed in a way nobody thought of")
            return error_response(RequestError("internal error; the log has the cause under this invocation's id"))

    async def _wait_for_disconnect(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
        if self._work is not None:
            self._client_gone = not self._work.done()
            self._work.cancel()

    def _count(self, status: int, seconds: float) -> None:
        outcome = "abandoned" if status == _CLIENT_GONE else outcome_of(status)
        route = self.request.url.path
        self._edge.metrics.requests.labels(route, outcome).inc()
        self._edge.metrics.request_duration.observe(seconds)
        extra = {"action": "invocation_end", "route": route, "status": status, "seconds": round(seconds, 3)}
        logger.info("invocation ended", extra=extra | self.fields)


async def _coroutine(work: Awaitable[Response]) -> Response:
    return await work


def error_response(error: RequestError) -> Response:
    import msgspec

    return Response(msgspec.json.encode(error.body()), status_code=error.status, media_type="application/json")
