"""A request's body: read within its limits and in time, into memory or onto the disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from container.dialects.document import RequestDigest
from container.dialects.sniffing import has_lines
from container.disk.ordered_spool import close_soon
from container.disk.spool import Spool
from container.errors import ClientTimeout, DeadlineExceeded, TooLarge, Unavailable
from container.invocations.deadline import Deadline
from container.reader.client import MAX_INLINE_BYTES
from container.server.content_coding import Decoder
from container.server.state import ServerState

_SPOOL_WRITE_BYTES = 1 << 20


def waits_for_100(request: Request) -> bool:
    """Return whether the client sends its body only when it is asked for it."""
    return request.headers.get("expect", "").lower() == "100-continue"


class RequestBody:
    """Owns the reading of one body, decoded, with its digest. Either `read` or `spool` is called, once.

    A body over the limit is read to its end all the same, if that is near: a client that is still sending would not
    read the answer. Only one that asked first (`Expect`) is answered at once.
    """

    def __init__(
        self, state: ServerState, request: Request, digest: RequestDigest, deadline: Deadline, job_name: str | None
    ) -> None:
        """Raises UnsupportedMedia for a content coding that isn't supported."""
        self.is_unsent = waits_for_100(request)
        """True while the client waits to be asked for the body, and if we no longer wait for it: the next request on
        its connection would be taken for the body."""
        self._state = state
        self._request = request
        self._digest = digest
        self._deadline = deadline
        self._job_name = job_name
        self._declared_bytes = int(request.headers.get("content-length", "0"))
        self._decoder = Decoder(request.headers.getlist("content-encoding"))
        self._has_more = True
        self._received_bytes = 0
        """Bytes that have come, still coded."""
        self._beginning = bytearray()
        """Bytes that were looked at and not handed on yet."""

    async def begins_with_lines(self) -> bool:
        """Return whether the body shows by its beginning that it is JSON lines. Raises RequestError."""
        if self._declared_bytes > self._state.settings.max_body_bytes:
            return False  # and is refused for it
        self.is_unsent = False
        verdict, may_tell = None, False
        while verdict is None and len(self._beginning) <= MAX_INLINE_BYTES and (piece := await self._next_piece()):
            self._beginning += piece
            may_tell |= b"\n" in piece
            verdict = has_lines(self._beginning) if may_tell else None
        return bool(verdict)

    async def read(self) -> bytes | Spool:
        """Return a document's body; a large one as a file, which the caller closes. Raises RequestError."""
        max_bytes = self._state.settings.max_json_bytes
        chunks = self._chunks(max_bytes, "send JSON lines (application/jsonlines) for more")
        body = bytearray()
        async for piece in chunks:
            body += piece
            if len(body) > MAX_INLINE_BYTES:
                spool = Spool(self._state.settings.spool_dir)
                try:
                    await self._write(spool, body, chunks, max_bytes)
                except BaseException:
                    close_soon(spool)
                    raise
                return spool
        self._digest.add(body)
        return bytes(body)

    async def spool(self, spool: Spool, on_chunk: Callable[[bytes], None]) -> None:
        """Write a batch's body to `spool`. Raises RequestError."""
        max_bytes = self._state.settings.max_body_bytes
        await self._write(spool, bytearray(), self._chunks(max_bytes, "split the file", on_chunk), max_bytes)

    async def _write(self, spool: Spool, pending: bytearray, chunks: AsyncIterator[bytes], max_bytes: int) -> None:
        # No more is ever written than the limit, which has an answer of its own.
        spool.reserve(min(max_bytes, self._declared_bytes))

        def append(data: bytes) -> None:
            spool.append(data)
            self._digest.add(data)

        async for chunk in chunks:
            pending += chunk
            if len(pending) >= _SPOOL_WRITE_BYTES:
                await asyncio.to_thread(append, bytes(pending))
                pending.clear()
        await asyncio.to_thread(append, bytes(pending))
        await asyncio.to_thread(spool.flush)

    async def _chunks(
        self, max_bytes: int, hint: str, on_chunk: Callable[[bytes], None] = lambda chunk: None
    ) -> AsyncIterator[bytes]:
        """Yield the decoded body as it comes, as far as it is within `max_bytes`. Raises RequestError.

        Any byte in time will do, there is no minimum rate: a gigabyte may come over a slow link.
        """
        if self._declared_bytes <= max_bytes:
            self.is_unsent = False
            decoded_bytes = 0
            piece, self._beginning = bytes(self._beginning), bytearray()
            while piece or (piece := await self._next_piece()):
                decoded_bytes += len(piece)
                if max(decoded_bytes, self._received_bytes) > max_bytes:
                    break
                on_chunk(piece)
                yield piece
                piece = b""
            else:
                return
        if not self.is_unsent:
            await self._drop_rest(max_bytes)
        decoded = "" if self._decoder.is_identity else ", when it is decoded,"
        raise TooLarge(f"the body{decoded} is larger than {max_bytes} bytes; {hint}")

    async def _next_piece(self) -> bytes:
        """Return the next piece of the decoded body, or nothing at its end. Raises RequestError."""
        while True:
            decoder = self._decoder
            piece = decoder.read() if decoder.is_identity else await asyncio.to_thread(decoder.read)
            if piece or not self._has_more:
                return piece
            chunk = await self._next_chunk()
            decoder.feed(chunk, is_last=not self._has_more)

    async def _drop_rest(self, max_bytes: int) -> None:
        """Read on until the body's end, if that is near."""
        self.is_unsent = False
        while self._has_more and self._received_bytes - max_bytes <= self._state.settings.max_body_bytes:
            await self._next_chunk()

    async def _next_chunk(self) -> bytes:
        message = await self._receive()
        chunk: bytes = message.get("body", b"")
        self._has_more = message.get("more_body", False)
        self._received_bytes += len(chunk)
        return chunk

    async def _receive(self) -> Message:
        """Wait for the next message, in short turns: a server that was frozen for long does not blame the client, whose
        bytes come with the next turn."""
        state, deadline = self._state, self._deadline
        receiving = asyncio.ensure_future(self._request.receive())
        timeout_s, waited_s = state.client_timeout_s, 0.0
        try:
            while waited_s < timeout_s and (left_s := deadline.left_s()) > 0:
                turn_s = min(1.0, timeout_s / 8, left_s)
                done, _ = await asyncio.wait({receiving}, timeout=turn_s)
                if done:
                    if receiving.result()["type"] == "http.disconnect":
                        raise ClientDisconnect
                    return receiving.result()
                waited_s += turn_s
                if timeout_s != state.client_timeout_s:  # the server drains
                    timeout_s, waited_s = state.client_timeout_s, 0.0
        finally:
            receiving.cancel()
        self.is_unsent = True
        if state.status == "draining":
            message = "the server is shutting down; send the request again"
            raise Unavailable(message, code="shutting_down", facts={"job": self._job_name, "resumable": False})
        if deadline.left_s() <= 0:
            message = f"the deadline ({deadline}) came before the end of the body"
            raise ClientTimeout(message, code=DeadlineExceeded.code)
        raise ClientTimeout(f"no more of the body came for {timeout_s:g} s (LONGHAUL_CLIENT_TIMEOUT_S)")
