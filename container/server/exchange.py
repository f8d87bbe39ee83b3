"""An exchange: one HTTP request and its one answer, whatever happens between."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from container.core import Seeds
from container.dialects.document import RequestHead, Route
from container.dialects.plain_text import HEADER as CUSTOM_ATTRIBUTES
from container.errors import ClientTimeout, DeadlineExceeded, RequestError, Unavailable
from container.invocations.deadline import Deadline
from container.telemetry.json_logs import invocation_id
from container.telemetry.metrics import outcome_of

if TYPE_CHECKING:
    from container.invocations.invocation import Invocation
    from container.invocations.request_digest import Fingerprint
    from container.jobs.attachment import Attachment
    from container.server.connection import Connection
    from container.server.server import Edge

logger = logging.getLogger(__name__)

INFERENCE_ID = "x-amzn-sagemaker-inference-id"
_CLIENT_GONE = 499
"""nginx's status for a client that went away: it reaches the log only."""


Work: TypeAlias = "Callable[[Exchange], Coroutine[Any, Any, Response]]"


class Exchange(Response):
    """Owns the task that works on the request, so that a client's leaving or a shutdown can end it.

    To FastAPI it is the response: asked to send itself, it works, sends what came of it, and only then has ended.
    """

    def __init__(self, edge: Edge, request: Request, work: Work) -> None:
        super().__init__()
        self._started = time.monotonic()
        given = request.headers.get(INFERENCE_ID, "")
        self.id = given if re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", given) else uuid.uuid4().hex
        self.request = request
        self.fields: dict[str, object] = {}
        """What the request's log line says beside status and duration."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.deadline: Deadline | None = None
        """Once it is known: a server that takes no work doesn't ask for it."""
        self.job_name: str | None = None
        self.attachment: Attachment | None = None
        self.unfinished = 0
        """Texts that the answer is without."""
        self._edge = edge
        self._do = work
        self._work: asyncio.Task[Response] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._verdict: RequestError | None = None
        self._client_gone = False
        self._waits_for_100 = request.headers.get("expect", "").lower() == "100-continue"
        self._body_given_up = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every way the work can end becomes a response and a log line."""
        token = invocation_id.set(self.id)
        self._edge.exchanges.add(self)
        status = _CLIENT_GONE
        try:
            response = await self._settle()
            response.headers["x-longhaul-invocation-id"] = self.id
            if self.deadline is not None:
                response.headers["x-longhaul-deadline"] = self.deadline.header
            if self._waits_for_100 or self._body_given_up or self._edge.status == "draining":
                # It won't send its body now, and the next request on this connection would be taken for the body.
                response.headers["connection"] = "close"
            await response(scope, receive, send)
            if not self._client_gone and await self._took_answer():
                status = response.status_code
        except Exception:
            status = 500
            raise
        finally:
            if self.attachment is not None:
                has_all = status < _CLIENT_GONE and not self.unfinished
                self._edge.release(self.attachment, is_complete=has_all)
            self._edge.exchanges.discard(self)
            self.ended.set_result(None)
            self._count(status, time.monotonic() - self._started)
            invocation_id.reset(token)

    @property
    def most_dropped(self) -> int:
        """Bytes of a body over its limit that are still read, so that the client can read why."""
        return self._edge.settings.max_body_bytes

    def read_head(self, route: Route) -> tuple[RequestHead, Deadline]:
        """Parse the headers. The deadline counts from the request's first byte. Raises InvalidRequest."""
        headers = self.request.headers
        head = RequestHead.parse(route, headers.get("content-type"), headers.get(CUSTOM_ATTRIBUTES))
        arrived = self.request.scope.get("state", {}).get("arrived", self._started)
        self.deadline = deadline = Deadline.of(self._edge.settings, head.timeout_s, arrived)
        self.job_name = head.job
        self.fields |= {"timeout_s": deadline.timeout_s, "timeout_source": deadline.source}
        return head, deadline

    async def attach(self, invocation: Invocation, fingerprint: Fingerprint) -> Seeds:
        """Take part in the request's job, until the client has its answer. Raises Conflict, DeadlineExceeded."""
        try:
            return (await invocation.attach(self.job_name, fingerprint.hexdigest())).seeds
        finally:
            self.attachment = invocation.attachment

    async def read_body(self) -> AsyncIterator[bytes]:
        """The request's body as it comes. A client that waits to be asked for it is asked.

        Any byte in time will do, there is no least rate: a gigabyte may come over a slow link. Raises ClientTimeout,
        also where the deadline comes before its end.
        """
        self._waits_for_100 = False
        stream = self.request.stream()
        while (chunk := await self._next_chunk(stream)) is not None:
            yield chunk

    async def _next_chunk(self, stream: AsyncIterator[bytes]) -> bytes | None:
        coming = asyncio.ensure_future(anext(stream, None))
        try:
            await self._wait_for(coming)
        finally:
            coming.cancel()
        return coming.result()

    async def _wait_for(self, chunk: asyncio.Future[bytes | None]) -> None:
        """In short turns: a server that was frozen for long blames no client, whose bytes come with the next turn."""
        patience_s, waited_s = self._edge.client_patience_s, 0.0
        while waited_s < patience_s and (left_s := self._left_s()) > 0:
            turn_s = min(1.0, patience_s / 8, left_s)
            done, _ = await asyncio.wait({chunk}, timeout=turn_s)
            if done:
                return
            waited_s += turn_s
            if patience_s != self._edge.client_patience_s:  # the server drains
                patience_s, waited_s = self._edge.client_patience_s, 0.0
        self._body_given_up = True
        if self._edge.status == "draining":
            message = "the server is shutting down; send the request again"
            raise Unavailable(message, code="shutting_down", facts={"job": self.job_name, "resumable": False})
        if self._left_s() <= 0:
            message = f"the deadline ({self.deadline}) came before the end of the body"
            raise ClientTimeout(message, code=DeadlineExceeded.code)
        raise ClientTimeout(f"no more of the body came for {patience_s:g} s (LONGHAUL_CLIENT_TIMEOUT_S)")

    def _left_s(self) -> float:
        return float("inf") if self.deadline is None else self.deadline.left_s()

    def watch_for_disconnect(self) -> None:
        """From now on, end the work if the client goes away. Only once the body has been read."""
        self._watch = asyncio.create_task(self._wait_for_disconnect())

    def abort(self, error: RequestError) -> None:
        """End the work; the client gets the error."""
        self._verdict = error
        if self._work is not None:
            self._work.cancel()

    async def _settle(self) -> Response:
        self._work = asyncio.create_task(self._do(self))
        try:
            await asyncio.wait([self._work])
            return self._work.result()
        except RequestError as error:
            # Its past holds on to the decoded document, and this exchange to it: only a rare collection would free it.
            return error_response(error.with_traceback(None))
        except (ClientDisconnect, asyncio.CancelledError):
            if not self._work.done():  # it is this task that was cancelled
                self._work.cancel()
                raise
            self._client_gone = self._verdict is None
            return error_response(self._verdict or Unavailable("the client went away", code="client_gone"))
        except Exception:
            logger.exception("a request failed in a way nobody thought of")
            return error_response(RequestError("internal error; the log has the cause under this invocation's id"))
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def _took_answer(self) -> bool:
        connection: Connection | None = self.request.scope.get("state", {}).get("connection")
        return connection is None or await connection.took_answer()

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
        extra = {"action": "invocation_end", "route": route, "status": status, "outcome": outcome}
        logger.info("invocation ended", extra=extra | {"seconds": round(seconds, 3)} | self.fields)


def error_response(error: RequestError) -> Response:
    return Response(msgspec.json.encode(error.body()), status_code=error.status, media_type="application/json")
