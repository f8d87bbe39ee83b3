"""The edge's side of readers: starts one for a large document, asks it, and ends it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from ..engine.messages import HEADER, encode
from ..errors import RequestError
from ..generation import Result
from ..spool import Spool
from .messages import (
    Failure,
    Get,
    Item,
    Open,
    Opened,
    Put,
    ReadDocument,
    ReaderConfig,
    ReadLine,
    Refuse,
    Render,
    Rendered,
    Taken,
    ToReader,
    to_edge,
    too_much_memory,
)

INLINE_BYTES = 4 << 20
"""A larger document, or line of JSON lines, has a reader of its own."""
AT_ONCE = 4
"""Readers. Each takes a core while it reads, and may take gigabytes."""

_COMMAND = (sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "container.reader.process")
T = TypeVar("T")


class Readers:
    """Starts readers, one a document, which waits on the disk until there is a place."""

    def __init__(self, config: ReaderConfig, places: asyncio.Semaphore) -> None:
        self._config = config
        self._places = places

    @asynccontextmanager
    async def read(self, what: ReadDocument | ReadLine, body: Spool, answer: Spool) -> AsyncIterator[Reader]:
        """A reader that has read the document in `body`, for as long as the context lasts. Raises RequestError."""
        async with self._places:
            reader = await Reader.start(body, answer)
            try:
                await reader.open(Open(self._config, what))
                yield reader
            finally:
                await reader.close()


class Reader:
    """One large document in a process of its own."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stream: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Spool,
    ) -> None:
        self._process = process
        self._stream = stream
        self._writer = writer
        self._answer = answer
        self._asking = asyncio.Lock()
        self.opened = Opened(0)
        """What the document turned out to be."""

    @classmethod
    async def start(cls, body: Spool, answer: Spool) -> Reader:
        ours, theirs = socket.socketpair()
        with theirs:
            files = (theirs.fileno(), body.fileno(), answer.fileno())
            try:
                process = subprocess.Popen(
                    [*_COMMAND, *map(str, files)],
                    pass_fds=files,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # a Ctrl-C in the terminal reaches the edge alone
                    env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
                )
            except OSError:
                ours.close()
                raise
        stream, writer = await asyncio.open_connection(sock=ours)
        return cls(process, stream, writer, answer)

    async def open(self, message: Open) -> None:
        self.opened = await self._ask(message, Opened)

    async def item(self, index: int) -> Item:
        return await self._ask(Get(index), Item)

    async def put(self, index: int, result: Result) -> None:
        await self._ask(Put(index, result), Taken)

    async def render(self, refusal: Failure | None = None) -> str:
        """Have the answer's file written; returns its content type. `refusal` is a line's error."""
        rendered = await self._ask(Render() if refusal is None else Refuse(refusal), Rendered)
        self._answer.size += rendered.size
        return rendered.content_type

    async def close(self) -> None:
        self._writer.close()
        self._process.kill()
        await asyncio.shield(asyncio.to_thread(self._process.wait))

    async def _ask(self, question: ToReader, kind: type[T]) -> T:
        async with self._asking:
            try:
                self._writer.write(encode(question))
                await self._writer.drain()
                (length,) = HEADER.unpack(await self._stream.readexactly(HEADER.size))
                answer = to_edge.decode(await self._stream.readexactly(length))
            except (asyncio.IncompleteReadError, ConnectionError):
                raise await self._cause_of_death() from None
        if isinstance(answer, Failure):
            raise answer.error()
        assert isinstance(answer, kind), f"{type(answer).__name__} is no answer to {type(question).__name__}"
        return answer

    async def _cause_of_death(self) -> RequestError:
        """Native code without memory ends in a signal, as does a process that the kernel chose to free some."""
        status = await asyncio.to_thread(self._process.wait)
        if status < 0:
            return too_much_memory()
        return RequestError("internal error; the log has the cause")
