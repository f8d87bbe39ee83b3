"""An invocation's answer on its way to the client."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from container.disk.ordered_spool import OrderedSpool, close_soon
from container.disk.spool import Spool
from container.invocations.invocation import Invocation
from container.server.connection import Connection


class Answer(Response):
    """The response with an invocation's answer, which tells where the deadline left something unfinished.

    It is complete with its last byte, so that a client may leave right behind that. Where the journal would take the
    request for one that was cut, the last byte waits until it knows better: a request that comes again after a whole
    answer is another one, also if the server was killed meanwhile.
    """

    def __init__(self, content: bytes | Spool | OrderedSpool, content_type: str, invocation: Invocation) -> None:
        """A spool is closed once it is sent."""
        # A text can't tell that it is unfinished in its body, and the content type is the only header that SageMaker
        # keeps: it is in the notification and with the object.
        if invocation.unfinished and content_type.startswith("text/plain"):
            content_type += "; finish_reason=deadline"
        self._size = len(content) if isinstance(content, bytes) else content.size
        super().__init__(media_type=content_type, headers={"content-length": str(self._size)})
        self._content = content
        self._invocation = invocation
        attachment = invocation.attachment
        if attachment is not None and attachment.job.name is not None:
            self.headers["x-longhaul-job"] = attachment.job.name
        if attachment is not None and attachment.resumed_tokens:
            self.headers["x-longhaul-resumed-tokens"] = str(attachment.resumed_tokens)
        if attachment is not None and attachment.changed_prompts:
            self.headers["x-longhaul-changed-prompts"] = str(attachment.changed_prompts)
        if invocation.unfinished:
            self.headers["x-longhaul-finish-reason"] = "deadline"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection | None = scope.get("state", {}).get("connection")
        try:
            if not self._size and self._invocation.has_open_slot:
                await self._close_slot(connection)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if self._size:
                await self._send_content(connection, send)
            else:
                await send({"type": "http.response.body", "body": b""})
        finally:
            if not isinstance(self._content, bytes):
                close_soon(self._content)

    async def _send_content(self, connection: Connection | None, send: Send) -> None:
        left = self._size
        async with aclosing(self._chunks()) as chunks:
            async for chunk in chunks:
                if connection is not None and connection.outgoing.is_lost:
                    return
                left -= len(chunk)
                if not left and self._invocation.has_open_slot:
                    await send({"type": "http.response.body", "body": chunk[:-1], "more_body": True})
                    await self._close_slot(connection)
                    chunk = chunk[-1:]
                await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})
                if not left:
                    return  # at once: what the client does from here on is to be told from leaving in the middle

    def _chunks(self) -> AsyncGenerator[bytes, None]:
        return _one_chunk(self._content) if isinstance(self._content, bytes) else self._content.chunks()

    async def _close_slot(self, connection: Connection | None) -> None:
        """Close the request's slot, once the client has all but the last byte. For one that has left it stays open."""
        if connection is None or (await connection.outgoing.taking() and not connection.may_have_left):
            await self._invocation.close_slot()


async def _one_chunk(content: bytes) -> AsyncGenerator[bytes, None]:
    yield content
