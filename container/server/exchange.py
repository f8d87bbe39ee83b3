"""An exchange: one HTTP request and its one answer."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from container.dialects.document import UNSPECIFIED, RequestDigest, RequestHead, Route, validate_charset
from container.dialects.plain_text import HEADER as CUSTOM_ATTRIBUTES
from container.disk.ordered_spool import OrderedSpool, close_soon
from container.disk.spool import Spool
from container.errors import RequestError, Unavailable
from container.invocations.batch_runner import BatchRunner
from container.invocations.deadline import Deadline
from container.invocations.document_runner import answer_large, answer_small
from container.invocations.invocation import Invocation
from container.invocations.service import Service
from container.server.answer import Answer
from container.server.body import RequestBody, waits_for_100
from container.server.connection import Connection
from container.server.responses import OUTCOMES, error_response
from container.server.state import WORKING, ServerState
from container.telemetry.json_logs import invocation_id

logger = logging.getLogger(__name__)

INFERENCE_ID = "x-amzn-sagemaker-inference-id"
_CLIENT_GONE = 499
"""Status that nginx has for a client that went away; it reaches the log only."""


class Exchanges:
    """Owns the open exchanges of the server."""

    def __init__(self) -> None:
        self.open: set[Exchange] = set()

    def __len__(self) -> int:
        return len(self.open)

    def abort_all(self) -> None:
        """End the work of all; each client is told whether its request can go on later."""
        for exchange in list(self.open):
            exchange.abort()

    async def wait_until_ended(self) -> None:
        while self.open:
            await asyncio.wait({exchange.ended for exchange in self.open})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The ASGI application behind a path that generates."""

    state: ServerState
    exchanges: Exchanges
    route: Route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self.state, self.route, Request(scope, receive))
        self.exchanges.open.add(exchange)
        try:
            await exchange.run(send)
        finally:
            self.exchanges.open.discard(exchange)
            exchange.ended.set_result(None)


class Exchange:
    """Owns the task that works on the request, so that a client's leaving or a shutdown can end it."""

    def __init__(self, state: ServerState, route: Route, request: Request) -> None:
        given_id = request.headers.get(INFERENCE_ID, "")
        self.id = given_id if re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", given_id) else uuid.uuid4().hex
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._state = state
        self._route: Route = route
        self._request = request
        self._started = time.monotonic()
        self._deadline: Deadline | None = None
        """The request's deadline, once it is known: a server that takes no work doesn't ask for it."""
        self._head: RequestHead | None = None
        self._body: RequestBody | None = None
        self._invocation: Invocation | None = None
        self._fields: dict[str, object] = {}
        """Fields of the request's log line beside status and duration."""
        self._work: asyncio.Task[Response] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._verdict: RequestError | None = None
        self._taking: asyncio.Future[bool] | None = None
        self._client_gone = False

    async def run(self, send: Send) -> None:
        """Turn every way in which the work can end into a response and a log line."""
        token = invocation_id.set(self.id)
        status, seconds = _CLIENT_GONE, 0.0
        try:
            response = await self._settle()
            response.headers["x-longhaul-invocation-id"] = self.id
            if self._deadline is not None:
                timeout = f"timeout={self._deadline.timeout_s:g};source={self._deadline.source}"
                response.headers["x-longhaul-deadline"] = timeout
            is_body_unsent = waits_for_100(self._request) if self._body is None else self._body.is_unsent
            if is_body_unsent or self._state.status == "draining":
                # It won't send its body now, and the next request on this connection would be taken for the body.
                response.headers["connection"] = "close"
            await response(self._request.scope, self._request.receive, send)
            seconds = time.monotonic() - self._started
            if not self._client_gone and await self._is_taken():
                status = response.status_code
        except Exception:
            status = 500
            raise
        finally:
            if self._invocation is not None:
                self._invocation.release(is_answered=status < _CLIENT_GONE)
            self._report(status, seconds or time.monotonic() - self._started)
            invocation_id.reset(token)

    async def _is_taken(self) -> bool:
        """Wait until the client has taken the whole answer; False if it never will."""
        connection: Connection | None = self._request.scope.get("state", {}).get("connection")
        if connection is None:
            return True
        self._taking = connection.outgoing.taking()
        return await self._taking

    def abort(self) -> None:
        """End the work; the client is told whether the request can go on later."""
        if self._taking is not None and not self._taking.done():
            self._taking.set_result(False)
        is_resumable = self._invocation is not None and self._invocation.is_resumable
        facts: dict[str, str | bool | None] = {
            "job": None if self._head is None else self._head.job,
            "resumable": is_resumable,
        }
        if self._state.failure is not None:
            self._verdict = Unavailable(f"the server failed: {self._state.failure}", code="failed", facts=facts)
        else:
            outlook = "goes on where it was" if is_resumable else "begins anew"
            message = f"the server is shutting down; the same request, sent again, {outlook}"
            self._verdict = Unavailable(message, code="shutting_down", facts=facts)
        if self._work is not None:
            self._work.cancel()

    async def _settle(self) -> Response:
        self._work = asyncio.create_task(self._answer())
        try:
            await asyncio.wait([self._work])
            return self._work.result()
        except RequestError as error:
            # Its traceback holds on to the decoded document, and this exchange to it: only a rare collection would
            # free it.
            return error_response(error.with_traceback(None))
        except (ClientDisconnect, asyncio.CancelledError):
            if not self._work.done():  # it is this task that was cancelled
                self._work.cancel()
                raise
            self._client_gone = self._verdict is None
            return error_response(self._verdict or Unavailable("the client went away", code="client_gone"))
        except Exception:
            logger.exception("a request failed in an unexpected way")
            return error_response(RequestError("internal error; the log has the cause under this invocation's id"))
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def _answer(self) -> Response:
        service, headers = self._state.service, self._request.headers
        if service is None or self._state.status not in WORKING:
            raise self._state.unavailable()
        self._head = head = RequestHead.parse(self._route, headers.get("content-type"), headers.get(CUSTOM_ATTRIBUTES))
        arrived = self._request.scope.get("state", {}).get("arrived", self._started)
        self._deadline = deadline = Deadline.of(self._state.settings, head.timeout_s, arrived)
        self._fields |= {"timeout_s": deadline.timeout_s, "timeout_source": deadline.source}
        digest = RequestDigest(service.identity, head)
        self._body = body = RequestBody(self._state, self._request, digest, deadline, head.job)
        if self._route == "invocations" and (
            head.is_json_lines or (head.media_type in UNSPECIFIED and await body.begins_with_lines())
        ):
            validate_charset(head)
            return await self._answer_batch(service, deadline, head, body, digest)
        return await self._answer_document(service, deadline, head, body, digest)

    async def _answer_document(
        self, service: Service, deadline: Deadline, head: RequestHead, request_body: RequestBody, digest: RequestDigest
    ) -> Response:
        body = await request_body.read()
        self._watch = asyncio.create_task(self._wait_for_disconnect())
        invocation = self._invocation = Invocation(service, deadline)
        answer: bytes | Spool
        try:
            if isinstance(body, bytes):
                answer, content_type = await answer_small(service, invocation, head, body, digest.hexdigest())
            else:
                spool_dir = self._state.settings.spool_dir
                answer, content_type = await answer_large(
                    service, invocation, head, body, digest.hexdigest(), spool_dir
                )
            invocation.begin_answer()
            return Answer(answer, content_type, invocation)
        finally:
            if isinstance(body, Spool):
                close_soon(body)
            self._fields |= invocation.close()

    async def _answer_batch(
        self, service: Service, deadline: Deadline, head: RequestHead, request_body: RequestBody, digest: RequestDigest
    ) -> Response:
        settings = self._state.settings
        body, answers = Spool(settings.spool_dir), OrderedSpool(settings.spool_dir)
        invocation = self._invocation = Invocation(service, deadline)  # last: it is closed below
        batch = BatchRunner(
            lambda: self._state.service or service,
            invocation,
            answers=answers,
            spool_dir=settings.spool_dir,
            max_line_bytes=settings.max_json_bytes,
        )
        try:
            await request_body.spool(body, invocation.count_body)
            self._watch = asyncio.create_task(self._wait_for_disconnect())
            async with invocation.before_deadline():
                invocation.attachment = attachment = await service.jobs.attach(head.job, digest.hexdigest())
            await batch.run(body, attachment.constants)
            await asyncio.to_thread(answers.flush)  # a full disk must show before the answer begins
        except BaseException:
            close_soon(answers)
            raise
        finally:
            close_soon(body)
            self._fields |= invocation.close() | {"items": batch.items, "failed_items": batch.failed}
        invocation.begin_answer()
        return Answer(answers, "application/jsonlines", invocation)

    async def _wait_for_disconnect(self) -> None:
        """End the work if the client goes away. Only once the body has been read."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        if self._work is not None:
            self._client_gone = not self._work.done()
            self._work.cancel()

    def _report(self, status: int, seconds: float) -> None:
        outcome = "abandoned" if status == _CLIENT_GONE else OUTCOMES[status // 100]
        path = self._request.url.path
        self._state.metrics.requests.labels(path, outcome).inc()
        self._state.metrics.request_duration.observe(seconds)
        fields = {"action": "invocation_end", "route": path, "status": status, "outcome": outcome}
        logger.info("invocation ended", extra=fields | {"seconds": round(seconds, 3)} | self._fields)
