"""Passes requests on to the backend and its answers back, both as streams: nothing is held whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import aiohttp
from multidict import CIMultiDict
from starlette.types import Message, Receive, Send
from yarl import URL

from endpoint.gateway.error_answers import error_answer
from endpoint.gateway.request import Answer, ClientGone, Request

_CONNECTIONS = 512
_CONNECT_S = 5.0
_UNAVAILABLE = "The service is not available at the moment. Try again."
_SILENCE_S = 300.0
"""Of the backend, before it is taken for dead: it is silent while it digests a large object."""

log = logging.getLogger(__name__)


class Proxy:
    """Owns the connections to the backend."""

    def __init__(self) -> None:
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def pass_on(self, request: Request, url: str, host: str, receive: Receive, send: Send) -> None:
        exchange = _Exchange(request, receive, send)
        try:
            await exchange.run(self._session(), URL(url, encoded=True), host)
        except asyncio.CancelledError:
            if not exchange.is_client_gone:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        except (aiohttp.ClientError, TimeoutError, ClientGone) as error:
            if exchange.is_client_gone:
                return
            log.warning("the backend does not answer: %s: %s", type(error).__name__, error)
            if exchange.is_answering:
                raise  # and the connection is cut, so that nobody takes half an answer for a whole one
            await send_answer(
                send, error_answer(request, 503, "ServiceUnavailable", "Service is unable to handle request.")
            )

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=1 << 18,
            )
        return self._http


class _Exchange:
    """One request passed to the backend and its answer passed back, neither held whole."""

    def __init__(self, request: Request, receive: Receive, send: Send) -> None:
        self._request = request
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._watch: asyncio.Task[None] | None = None
        self._is_answered = False
        self.is_answering = False
        self.is_client_gone = False

    async def run(self, http: aiohttp.ClientSession, url: URL, host: str) -> None:
        """Cancelled if the client goes."""
        headers = CIMultiDict(_forwarded(self._request))
        headers["Host"] = host
        body = await self._body()
        try:
            async with http.request(
                self._request.method, url, headers=headers, data=body, allow_redirects=False
            ) as response:
                self.is_answering = True
                await self._send(
                    {
                        "type": "http.response.start",
                        "status": response.status,
                        "headers": [
                            (name, value) for name, value in response.raw_headers if _passes_back(name.lower())
                        ],
                    }
                )
                async for part in response.content.iter_any():
                    await self._send({"type": "http.response.body", "body": part, "more_body": True})
                self._is_answered = True
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._is_answered = True
            if self._watch is not None:
                self._watch.cancel()

    async def _body(self) -> bytes | AsyncIterator[bytes] | None:
        """Most come in one part."""
        message = await self._next()
        if message.get("more_body", False):
            return self._stream(message)
        self._watch = asyncio.create_task(self._cancel_when_gone())
        body: bytes = message.get("body", b"")
        return body or None

    async def _stream(self, message: Message) -> AsyncIterator[bytes]:
        while True:
            if part := message.get("body", b""):
                yield part
            if not message.get("more_body", False):
                break
            message = await self._next()
        self._watch = asyncio.create_task(self._cancel_when_gone())

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_client_gone = True
            raise ClientGone
        return message

    async def _cancel_when_gone(self) -> None:
        await self._receive()
        if not self._is_answered and self._task is not None:
            self.is_client_gone = True
            self._task.cancel()


_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)


def _forwarded(request: Request) -> list[tuple[str, str]]:
    named = {name.strip().lower() for name in request.headers.get("connection", "").split(",")}
    dropped = _HOP_BY_HOP | named | {"host", "expect"}
    return [(name, value) for name, value in request.headers.items() if name not in dropped]


def _passes_back(name: bytes) -> bool:
    """No permission for web pages; the date is our server's to give."""
    return not name.startswith(b"access-control-") and name not in _NOT_BACK


_NOT_BACK = frozenset({name.encode() for name in _HOP_BY_HOP} | {b"date"})


async def send_answer(send: Send, answer: Answer) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode()) for name, value in answer.headers.items()]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
