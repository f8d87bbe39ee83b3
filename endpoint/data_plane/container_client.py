"""Calls of containers, each over a connection of its own and within its timeout. Knows neither queue nor S3."""

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

from endpoint.fsync import fsync_path

MAX_HEADER_BYTES = 4096
_FLUSH_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 18
"""Bytes of a header line that are read, to be refused with the right message."""
_WRITERS = 8


class Timeout(Exception):
    """Raised if the answer wasn't complete in time."""


class NoAnswer(Exception):
    """Raised if the connection was refused, or ended before the answer was complete."""


class BadAnswer(Exception):
    """Raised for an answer that SageMaker refuses. The message says why, in its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Values by lowercase name; the last of one that came twice."""
    file: Path
    """File with the body, on the disk for good."""
    size: int
    seconds: float
    """Seconds from the call to the last byte."""

    @property
    def content_type(self) -> str | None:
        return self.headers.get("content-type")

    def head(self, max_bytes: int) -> str:
        """Read the beginning of the body as text."""
        with self.file.open("rb") as file:
            return file.read(max_bytes).decode(errors="replace")


class Body(Protocol):
    """A stream of known size."""

    @property
    def size(self) -> int: ...

    def chunks(self) -> AsyncIterator[bytes]: ...


def request_headers(
    content_type: str | None,
    accept: str | None,
    custom_attributes: str | None,
    inference_id: str | None,
    content_encoding: str | None = None,
) -> dict[str, str]:
    """Return the headers that a container is called with: those of the caller's that SageMaker forwards, and those of
    the input."""
    headers = {
        "Content-Type": content_type,
        "Content-Encoding": content_encoding,
        "Accept": accept,
        "X-Amzn-SageMaker-Custom-Attributes": custom_attributes,
        "X-Amzn-SageMaker-Inference-Id": inference_id,
    }
    return {name: value for name, value in headers.items() if value is not None}


class ContainerClient:
    """Owns the HTTP session, and the threads that write answers to the disk."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._threads = ThreadPoolExecutor(_WRITERS, "answer writer")

    async def invoke(
        self, instance_url: str, headers: Mapping[str, str], body: bytes | Body, timeout_s: float, spool: Path
    ) -> Answer:
        """Return the answer, whatever its status. The file `spool` is there only if this returns.

        Raises Timeout, NoAnswer, BadAnswer, what `body` raises, and OSError if the spool could not be written.
        """
        call = _Call(self._http(), self._threads, body, spool)
        try:
            async with asyncio.timeout(timeout_s) as limit:
                answer = await call.make(f"{instance_url}/invocations", headers)
            await call.spool.keep()
            return answer
        except BaseException as error:
            call.hang_up()
            await call.spool.discard()
            if call.body_error is not None and isinstance(error, Exception):
                raise call.body_error from error
            if isinstance(error, TimeoutError) and limit.expired():
                raise Timeout(f"no complete answer within {timeout_s:g} s") from error
            raise
        finally:
            call.hang_up()

    async def close(self) -> None:
        """End the session; the next call makes a new one."""
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
                max_line_size=_MAX_LINE_BYTES,
                max_field_size=_MAX_LINE_BYTES,
                max_headers=MAX_HEADER_BYTES,
            )
        return self._session


_connections: ContextVar[list[asyncio.Transport]] = ContextVar("connections")


class _Connector(aiohttp.TCPConnector):
    """Tells each call its connection, which can be aborted then: aiohttp closes it only when all has been sent."""

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
        """Error of reading the input: aiohttp would hide it, and go on to wait where the answer has begun."""
        self.spool = _Spool(spool, threads)
        self._session = session
        self._body = body
        self._transports: list[asyncio.Transport] = []

    async def make(self, url: str, headers: Mapping[str, str]) -> Answer:
        begin = time.monotonic()
        _connections.set(self._transports)
        try:
            data: io.BytesIO | AsyncIterator[bytes]
            if isinstance(self._body, bytes):
                size, data = len(self._body), io.BytesIO(self._body)
            else:
                size, data = self._body.size, self._watch(self._body)
            response = await self._session.post(
                url, headers={**headers, "Content-Length": str(size)}, data=data, allow_redirects=False
            )
            try:
                _check(response)
                async for chunk in response.content.iter_any():
                    await self.spool.write(chunk)
            finally:
                self.hang_up()
                response.close()
        except aiohttp.ClientResponseError as error:
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, LineTooLong):
                    raise BadAnswer(_TOO_LONG) from error
                cause = cause.__cause__
            raise NoAnswer(f"no HTTP answer: {error.message}") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise NoAnswer(f"the connection ended: {type(error).__name__}") from error
        return Answer(
            status=response.status,
            headers={name.lower(): value for name, value in response.headers.items()},
            file=self.spool.path,
            size=self.spool.size,
            seconds=time.monotonic() - begin,
        )

    def hang_up(self) -> None:
        for transport in self._transports:
            if transport.get_protocol() is not None:  # None once it is closed: asyncio can't abort that
                transport.abort()

    async def _watch(self, body: Body) -> AsyncIterator[bytes]:
        try:
            async for chunk in body.chunks():
                yield chunk
        except Exception as error:
            self.body_error = error
            self.hang_up()
            raise


class _Spool:
    """A file that is written in few, large pieces, by threads."""

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
        if len(self._waiting) >= _FLUSH_BYTES:
            await self._flush(is_last=False)

    async def keep(self) -> None:
        """Write the rest; return when the file and its name are on the disk for good."""
        await self._flush(is_last=True)

    async def discard(self) -> None:
        if self._writing is not None:  # by a thread that a cancelled caller left
            with suppress(Exception):
                await asyncio.shield(self._writing)
        if self._file is not None:
            self._file.close()
            self.path.unlink(missing_ok=True)

    async def _flush(self, *, is_last: bool) -> None:
        data, self._waiting = self._waiting, bytearray()
        self._writing = asyncio.get_running_loop().run_in_executor(self._threads, self._write, data, is_last)
        await asyncio.shield(self._writing)

    def _write(self, data: bytearray, is_last: bool) -> None:
        if self._file is None:
            self._file = self.path.open("wb", buffering=0)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        if is_last:
            os.fsync(self._file.fileno())
            self._file.close()
            fsync_path(self.path.parent)


_TOO_LONG = (
    f"Response received from the primary container has headers with length greater than {MAX_HEADER_BYTES} bytes."
    " Reduce the length of your container's response headers and update your endpoint"
)
_NO_LENGTH = "The response from container primary did not specify the required Content-Length header"


def _check(response: aiohttp.ClientResponse) -> None:
    """Raise BadAnswer for headers that SageMaker refuses. Lengths count as on the wire: `name: value` and line end."""
    if sum(len(name) + len(value) + 4 for name, value in response.raw_headers) > MAX_HEADER_BYTES:
        raise BadAnswer(_TOO_LONG)
    if "Content-Length" not in response.headers and response.status not in (204, 304):
        raise BadAnswer(_NO_LENGTH)
