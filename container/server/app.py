"""The HTTP surface: SageMaker's two paths, OpenAI's for local use, and the metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from container import __version__
from container.dialects.document import JSON_LINES, RequestHead, Route, validate_charset
from container.disk.spool import OrderedSpool, Spool, close_soon
from container.errors import InvalidRequest, RequestError, TooLarge
from container.invocations.batch_runner import BatchRun
from container.invocations.deadline import Deadline
from container.invocations.document_runner import answer_large, answer_small, spooled_response
from container.invocations.invocation import Invocation, Service
from container.invocations.request_digest import Fingerprint
from container.reader.client import MAX_INLINE_BYTES
from container.server import openapi
from container.server.exchange import Exchange, error_response
from container.server.server import Edge
from container.settings import Settings

_SPOOL_WRITE = 1 << 20


def create_app(edge: Edge) -> FastAPI:
    app = FastAPI(title="Longhaul", version=__version__, docs_url=None, redoc_url=None)

    @app.api_route("/ping", methods=["GET", "POST"])
    async def ping() -> Response:
        """200 when the server can take work, and while it recovers from an engine's crash."""
        body = msgspec.json.encode({"status": edge.status, "reason": edge.reason})
        return Response(body, status_code=200 if edge.takes_work else 503, media_type="application/json")

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        return Response(edge.metrics.render(), media_type="text/plain; version=0.0.4")

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        """Generate, in the dialect that content type and shape of the body tell."""
        return Exchange(edge, request, lambda exchange: _answer(edge, exchange, "invocations"))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """OpenAI's chat completions."""
        return Exchange(edge, request, lambda exchange: _answer(edge, exchange, "chat"))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        """OpenAI's completions."""
        return Exchange(edge, request, lambda exchange: _answer(edge, exchange, "completions"))

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        """The one model."""
        model = {"id": edge.settings.name, "object": "model", "created": started, "owned_by": "longhaul"}
        return {"object": "list", "data": [model]}

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        response = error_response(_named(error))
        response.headers.update(error.headers or {})  # a 405 owes its Allow
        return response

    started = int(time.time())
    app.openapi = openapi.document  # type: ignore[method-assign]  # FastAPI's own way to replace it
    return app


async def _answer(edge: Edge, exchange: Exchange, route: Route) -> Response:
    service = edge.service_or_unavailable()
    head, deadline = exchange.read_head(route)
    if route == "invocations" and head.media_type in JSON_LINES:
        return await _answer_batch(edge, service, exchange, head, deadline)
    return await _answer_document(edge.settings, service, exchange, head, deadline)


async def _answer_document(
    settings: Settings, service: Service, exchange: Exchange, head: RequestHead, deadline: Deadline
) -> Response:
    fingerprint = Fingerprint(service.identity, head)
    body = await _read_document(exchange, settings, fingerprint)
    exchange.watch_for_disconnect()
    invocation = Invocation(service, deadline)
    try:
        if isinstance(body, bytes):
            seeds = await exchange.attach(invocation, fingerprint)
            response = await answer_small(service, invocation, head, body, seeds)
        else:
            invocation.body_bytes = body.size
            seeds = await exchange.attach(invocation, fingerprint)
            response = await answer_large(service, invocation, head, body, seeds, settings.spool_dir)
        return _marked(response, invocation)
    finally:
        if isinstance(body, Spool):
            close_soon(body)
        invocation.close()
        exchange.unfinished = invocation.unfinished
        exchange.fields |= invocation.counts()


async def _read_document(exchange: Exchange, settings: Settings, fingerprint: Fingerprint) -> bytes | Spool:
    """A large one goes to the disk at once."""
    limit = settings.max_json_bytes
    chunks = _chunks(exchange, limit, "send JSON lines (application/jsonlines) for more")
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_INLINE_BYTES:
            spool = Spool(settings.spool_dir)
            try:
                await _spool_body(exchange, spool, limit, chunks, body, fingerprint)
            except BaseException:
                close_soon(spool)
                raise
            return spool
    fingerprint.add(body)
    return bytes(body)


async def _chunks(exchange: Exchange, limit: int, hint: str) -> AsyncIterator[bytes]:
    """The body, as far as it is within the limit.

    One over the limit is read to its end all the same, if that is near: a client that is still sending would not read
    the answer. Only one that asked first (`Expect: 100-continue`) is told at once.
    """
    headers = exchange.request.headers
    declared = int(headers.get("content-length", "0"))
    too_large = TooLarge(f"the body is larger than {limit} bytes; {hint}")
    if declared > limit and "expect" in headers:
        raise too_large
    size = 0
    async for chunk in exchange.read_body():
        size += len(chunk)
        if max(size, declared) <= limit:
            yield chunk
        elif size - limit > exchange.most_dropped:
            break
    if max(size, declared) > limit:
        raise too_large


async def _answer_batch(
    edge: Edge, service: Service, exchange: Exchange, head: RequestHead, deadline: Deadline
) -> Response:
    settings = edge.settings
    validate_charset(head)
    fingerprint = Fingerprint(service.identity, head)
    body, answers = Spool(settings.spool_dir), OrderedSpool(settings.spool_dir)
    invocation = Invocation(service, deadline)  # last: it is closed below
    batch = BatchRun(
        lambda: edge.service or service,
        invocation,
        answers=answers,
        spool_dir=settings.spool_dir,
        longest_line=settings.max_json_bytes,
    )
    limit = settings.max_body_bytes
    try:
        chunks = batch.counting(_chunks(exchange, limit, "split the file"))
        await _spool_body(exchange, body, limit, chunks, bytearray(), fingerprint)
        exchange.watch_for_disconnect()
        seeds = await exchange.attach(invocation, fingerprint)
        await batch.run(body, seeds)
        await asyncio.to_thread(answers.flush)  # a full disk must show before the answer begins
    except BaseException:
        close_soon(answers)
        raise
    finally:
        close_soon(body)
        invocation.close()
        exchange.unfinished = invocation.unfinished
        exchange.fields |= invocation.counts() | {"items": batch.items, "failed_items": batch.failed}
    return _marked(spooled_response(answers, "application/jsonlines"), invocation)


def _marked(response: Response, invocation: Invocation) -> Response:
    """Says so where the deadline left something unfinished. A text can't say it itself, and of the headers SageMaker
    keeps the content type alone: in the notice and with the object."""
    if invocation.attachment is not None and invocation.attachment.job.name is not None:
        response.headers["x-longhaul-job"] = invocation.attachment.job.name
    if invocation.attachment is not None and invocation.attachment.resumed_tokens:
        response.headers["x-longhaul-resumed-tokens"] = str(invocation.attachment.resumed_tokens)
    if invocation.unfinished:
        response.headers["x-longhaul-finish-reason"] = "deadline"
        if response.headers["content-type"].startswith("text/plain"):
            response.headers["content-type"] += "; finish_reason=deadline"
    return response


async def _spool_body(
    exchange: Exchange,
    spool: Spool,
    limit: int,
    chunks: AsyncIterator[bytes],
    pending: bytearray,
    fingerprint: Fingerprint,
) -> None:
    """`pending` and whatever comes after it."""
    # No more is ever written than the limit, which has an answer of its own.
    spool.reserve(min(limit, int(exchange.request.headers.get("content-length", "0"))))
    async for chunk in chunks:
        pending += chunk
        if len(pending) >= _SPOOL_WRITE:
            await asyncio.to_thread(_append, spool, fingerprint, bytes(pending))
            pending.clear()
    await asyncio.to_thread(_append, spool, fingerprint, bytes(pending))
    await asyncio.to_thread(spool.flush)


def _append(spool: Spool, fingerprint: Fingerprint, data: bytes) -> None:
    spool.append(data)
    fingerprint.add(data)


def _named(error: HTTPException) -> RequestError:
    """What the router itself refuses, in our form."""
    named = InvalidRequest("there is no such path; generation is POST /invocations", code="not_found")
    if error.status_code == 405:
        named = InvalidRequest("this path does not take this method", code="method_not_allowed")
    named.status = error.status_code
    return named
