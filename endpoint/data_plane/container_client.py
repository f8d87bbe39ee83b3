"""One call of a container, over a connection of its own, held to its time. Knows no queue and no S3."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import aiohttp
from aiohttp.http_exceptions import LineTooLong

from endpoint.settings import Settings

MOST_HEADER_BYTES = 4096
_FLUSH = 1 << 20
_LONGEST_LINE = 1 << 18
"""Of headers that are read, to be refused."""
_WRITES_AT_ONCE = 8


class Timeout(Exception):
    """The whole answer wasn't there in time."""


class NoAnswer(Exception):
    """Nobody listened, or the connection ended before the whole answer was there."""


class BadAnswer(Exception):
    """An answer that SageMaker refuses. The message says why, in its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """By lowercase name; of one that came twice, the last."""
    file: Path
    """The body, on the disk for good."""
    size: int
    seconds: float
    """From the call to the last byte."""

    @property
    def content_type(self) -> str | None:
        return self.headers.get("content-type")


class Body(Protocol):
    """A stream of known size."""

    @property
    def size(self) -> int: ...

    def chunks(self) -> AsyncIterator[bytes]: ...


def forwarded(
    content_type: str | None, accept: str | None, custom_attributes: str | None, inference_id: str | None
) -> dict[str, str]:
    """The headers that a container is called with: of what the caller gave, what SageMaker hands on."""
    headers = {
        "Content-Type": content_type,
        "Accept": accept,
        "X-Amzn-SageMaker-Custom-Attributes": custom_attributes,
        "X-Amzn-SageMaker-Inference-Id": inference_id,
    }
    return {name: value for name, value in headers.items() if value is not None}


class ContainerClient:
    """Owns the HTTP session, and the threads that write answers to the disk."""

    def __init__(self, settings: Settings) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._threads = ThreadPoolExecutor(_WRITES_AT_ONCE, "answer writer")

    async def invoke(
        self, instance_url: str, headers: Mapping[str, str], body: bytes | Body, timeout_s: float, spool: Path
    ) -> Answer:
        """Raises Timeout, NoAnswer, BadAnswer, and what `body` raises. The spool file is there only if it returns.

        The answer of any status is returned. OSError: the spool could not be written.
        """
        call = _Call(self._http(), self._threads, body, spool)
        try:
            async with asyncio.timeout(timeout_s) as limit:
                answer = await call.make(f"{instance_url}/invocations", headers)
            await call.keep()
            return answer
        except BaseException as error:
            call.hang_up()
            await call.discard()
            if call.body_error is not None and isinstance(error, Exception):
                raise call.body_error from error
            if isinstance(error, TimeoutError) and limit.expired():
                raise Timeout(f"no whole answer in {timeout_s:g} s") from error
            raise
        finally:
            call.hang_up()

    async def close(self) -> None:
        """The next call makes a new session."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
                auto_decompress=False,
                trust_env=False,
                max_line_size=_LONGEST_LINE,
                max_field_size=_LONGEST_LINE,
                max_headers=MOST_HEADER_BYTES,
            )
        return self._session


_connections: ContextVar[list[asyncio.Transport]] = ContextVar("connections")


class _Connector(aiohttp.TCPConnector):
    """Tells each call its connection, which aiohttp would close only when what is unsent has been sent."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        connection = await super().connect(req, traces, timeout)
        if connection.transport is not None:
            _connections.get().append(connection.transport)
        return connection


class _Call:
    def __init__(
        self, session: aiohttp.ClientSession, threads: ThreadPoolExecutor, body: bytes | Body, spool: Path
    ) -> None:
        self.body_error: Exception | None = None
        """What reading the input raised: aiohttp would hide it, and go on to wait where the answer has begun."""
        self._session = session
        self._body = body
        self._spool = _Spool(spool, threads)
        self._transports: list[asyncio.Transport] = []

    async def make(self, url: str, headers: Mapping[str, str]) -> Answer:
        begin = time.monotonic()
        _connections.set(self._transports)
        try:
            response = await self._session.post(
                url, headers=self._headers(headers), data=self._data(), allow_redirects=False
            )
            try:
                _check(response)
                async for chunk in response.content.iter_any():
                    await self._spool.write(chunk)
            finally:
                self.hang_up()
                response.close()
        except aiohttp.ClientResponseError as error:
            if _has_cause(error, LineTooLong):
                raise BadAnswer(_TOO_LONG) from error
            raise NoAnswer(f"no HTTP answer: {error.message}") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise NoAnswer(f"the connection ended: {type(error).__name__}") from error
        return Answer(
            status=response.status,
            headers={name.lower(): value for name, value in response.headers.items()},
            file=self._spool.path,
            size=self._spool.size,
            seconds=time.monotonic() - begin,
        )

    async def keep(self) -> None:
        await self._spool.keep()

    async def discard(self) -> None:
        await self._spool.discard()

    def hang_up(self) -> None:
        for transport in self._transports:
            if transport.get_protocol() is not None:  # None once it is closed: asyncio can't abort that
                transport.abort()

    def _headers(self, given: Mapping[str, str]) -> dict[str, str]:
        size = len(self._body) if isinstance(self._body, bytes) else self._body.size
        return {**given, "Content-Length": str(size)}

    def _data(self) -> io.BytesIO | AsyncIterator[bytes]:
        return io.BytesIO(self._body) if isinstance(self._body, bytes) else self._watched(self._body)

    async def _watched(self, body: Body) -> AsyncIterator[bytes]:
        try:
            async for chunk in body.chunks():
                yield chunk
        except Exception as error:
            self.body_error = error
            self.hang_up()
            raise


class _Spool:
    """A file that is written in few, big pieces, by threads."""

    def __init__(self, path: Path, threads: ThreadPoolExecutor) -> None:
        self.path = path
        self.size = 0
        self._threads = threads
        self._waiting = bytearray()
        self._file: BinaryIO | None = None
        self._writing: asyncio.Future[None] | None = None

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        self._waiting += data
        if len(self._waiting) >= _FLUSH:
            await self._do(False)

    async def keep(self) -> None:
        """The file and its name are on the disk for good."""
        await self._do(True)

    async def discard(self) -> None:
        if self._writing is not None:  # by a thread that a cancelled caller left
            with suppress(Exception):
                await asyncio.shield(self._writing)
        if self._file is not None:
            self._file.close()
            self.path.unlink(missing_ok=True)

    async def _do(self, last: bool) -> None:
        data, self._waiting = self._waiting, bytearray()
        self._writing = asyncio.get_running_loop().run_in_executor(self._threads, self._write, data, last)
        await asyncio.shield(self._writing)

    def _write(self, data: bytearray, last: bool) -> None:
        if self._file is None:
            self._file = self.path.open("wb", buffering=0)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        if last:
            os.fsync(self._file.fileno())
            self._file.close()
            _sync_directory(self.path.parent)


_TOO_LONG = (
    f"Response received from the primary container has headers with length greater than {MOST_HEADER_BYTES} bytes."
    " Reduce the length of your container's response headers and update your endpoint"
)
_NO_LENGTH = "The response from container primary did not specify the required Content-Length header"


def _check(response: aiohttp.ClientResponse) -> None:
    """Before its body is read. Lengths are counted as on the wire: `name: value` and the line's end."""
    if sum(len(name) + len(value) + 4 for name, value in response.raw_headers) > MOST_HEADER_BYTES:
        raise BadAnswer(_TOO_LONG)
    if "Content-Length" not in response.headers and response.status not in (204, 304):
        raise BadAnswer(_NO_LENGTH)


def _has_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error is not None


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
