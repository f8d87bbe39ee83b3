"""A request's body: read within its limits and in time, into memory or onto the disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from container.dialects.document import RequestDigest
from container.disk.ordered_spool import close_soon
from container.disk.spool import Spool
from container.errors import ClientTimeout, DeadlineExceeded, TooLarge, Unavailable
from container.invocations.deadline import Deadline
from container.reader.client import MAX_INLINE_BYTES
from container.server.state import ServerState

_SPOOL_WRITE_BYTES = 1 << 20


def waits_for_100(request: Request) -> bool:
    """Return whether the client sends its body only when it is asked for it."""
    return request.headers.get("expect", "").lower() == "100-continue"


class RequestBody:
    """Owns the reading of one body, with its digest. Either `read` or `spool` is called, once.

    A body over the limit is read to its end all the same, if that is near: a client that is still sending would not
    read the answer. Only one that asked first (`Expect`) is answered at once.
    """

    def __init__(
        self, state: ServerState, request: Request, digest: RequestDigest, deadline: Deadline, job_name: str | None
    ) -> None:
        self.is_unsent = waits_for_100(request)
        """True while the client waits to be asked for the body, and if we no longer wait for it: the next request on
        its connection would be taken for the body."""
        self._state = state
        self._request = request
        self._digest = digest
        self._deadline = deadline
        self._job_name = job_name
        self._declared_bytes = int(request.headers.get("content-length", "0"))

    async def read(self) -> bytes | Spool:
        """Return a document's body; a large one as a file, which the caller closes. Raises RequestError."""
        max_bytes = self._state.settings.max_json_bytes
        chunks = self._chunks(max_bytes, "send JSON lines (application/jsonlines) for more")
        body = bytearray()
        async for chunk in chunks:
            body += chunk
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
        """Yield the body as it comes, as far as it is within `max_bytes`. Raises RequestError.

        Any byte in time will do, there is no minimum rate: a gigabyte may come over a slow link.
        """
        size = self._declared_bytes
        if size <= max_bytes or "expect" not in self._request.headers:
            self.is_unsent = False
            received, has_more = 0, True
            while has_more and received - max_bytes <= self._state.settings.max_body_bytes:
                message = await self._receive()
                chunk, has_more = message.get("body", b""), message.get("more_body", False)
                received += len(chunk)
                size = max(received, self._declared_bytes)
                if chunk and size <= max_bytes:
                    on_chunk(chunk)
                    yield chunk
        if size > max_bytes:
            raise TooLarge(f"the body is larger than {max_bytes} bytes; {hint}")

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
