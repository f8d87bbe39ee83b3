"""Forwards requests to the backend and its responses back, both as streams: nothing is held whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping

import aiohttp
from multidict import CIMultiDict
from starlette.types import Message, Send
from yarl import URL

from endpoint.gateway.request import ClientGone, Request

_MAX_CONNECTIONS = 512
_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 300.0
"""Seconds of the backend's silence after which it is taken for dead: it is silent while it digests a large object."""
_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)
_NOT_BACK = frozenset({name.encode() for name in _HOP_BY_HOP} | {b"date"})  # the date is our server's to give

logger = logging.getLogger(__name__)


class BackendUnavailable(Exception):
    """The backend did not begin to answer."""


class Proxy:
    """Owns the connections to the backend."""

    def __init__(self) -> None:
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def forward(
        self,
        request: Request,
        url: str,
        headers: Mapping[str, str],
        send: Send,
        on_taken: Callable[[], None] | None = None,
    ) -> None:
        """Forward a request. Raises BackendUnavailable, or what broke a response that had begun.

        `on_taken` is called between a response of 2xx and its way to the client.
        """
        exchange = _Exchange(request, send, on_taken)
        try:
            await exchange.run(self._session(), URL(url, encoded=True), headers)
        except asyncio.CancelledError:
            if not exchange.is_client_gone:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        except (aiohttp.ClientError, TimeoutError, ClientGone) as error:
            if exchange.is_client_gone:
                return
            logger.warning("the backend does not answer: %s: %s", type(error).__name__, error)
            if exchange.is_answering:
                raise  # the server cuts the connection, so that half a response isn't taken for a whole one
            raise BackendUnavailable from error

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=1 << 18,
            )
        return self._http


class _Exchange:
    """One request to the backend and its response."""

    def __init__(self, request: Request, send: Send, on_taken: Callable[[], None] | None) -> None:
        self._request = request
        self._send = send
        self._on_taken = on_taken
        self._task = asyncio.current_task()
        self._watch: asyncio.Task[None] | None = None
        self._is_answered = False
        self.is_answering = False
        self.is_client_gone = False

    async def run(self, http: aiohttp.ClientSession, url: URL, headers: Mapping[str, str]) -> None:
        """Forward the request and its response. Cancels its task if the client goes."""
        named = {name.strip().lower() for name in headers.get("connection", "").split(",")}
        dropped = _HOP_BY_HOP | named | {"expect"}
        sent = CIMultiDict({name: value for name, value in headers.items() if name not in dropped})
        body, method = await self._body(), self._request.method
        try:
            async with http.request(method, url, headers=sent, data=body, allow_redirects=False) as response:
                if self._on_taken is not None and response.ok:
                    self._on_taken()
                self.is_answering = True
                await self._send(
                    {
                        "type": "http.response.start",
                        "status": response.status,
                        "headers": [
                            (name, value)
                            for name, value in response.raw_headers
                            # no permission for web pages
                            if name.lower() not in _NOT_BACK and not name.lower().startswith(b"access-control-")
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
        """Return the whole body, as most come in one part, or a stream of it."""
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
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            self.is_client_gone = True
            raise ClientGone
        return message

    async def _cancel_when_gone(self) -> None:
        await self._request.receive()
        if not self._is_answered and self._task is not None:
            self.is_client_gone = True
            self._task.cancel()
