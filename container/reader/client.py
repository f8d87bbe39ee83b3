"""The edge's side of readers: starts one for a large document, asks it, notices its death, and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from container.core import Result, Seeds
from container.disk.spool import Spool
from container.engine.messages import HEADER, encode
from container.errors import RequestError
from container.reader.messages import (
    Broken,
    Done,
    Failure,
    Get,
    Item,
    Load,
    Open,
    Opened,
    Put,
    ReadDocument,
    ReaderConfig,
    ReadLine,
    Refuse,
    Render,
    Rendered,
    ToEdge,
    ToReader,
    to_edge,
    too_much_memory,
)

logger = logging.getLogger(__name__)

INLINE_BYTES = 1 << 20
"""A larger document, or line of JSON lines, has a reader of its own."""
OPEN = 16
"""Documents that have a reader at the same time; each holds a hundred megabytes and its document."""
BUSY = 2
"""Readers that read at the same time, and as many that render. Each takes a core, and may take gigabytes."""
_PATIENCE_S = 900.0
"""For one answer of a reader. Tokenizing 64 MiB takes a minute."""

_LAST_WORDS_S = 5.0
"""From hanging up to the end of the process."""

_COMMAND = (sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "container.reader.process")
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Libraries that reserve memory for a thread a core, which here have nothing to compute.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
T = TypeVar("T", bound=ToEdge)


class Places:
    """Owns the places for readers, and knows those that are alive. A document waits for a place on the disk."""

    def __init__(self) -> None:
        self.open = asyncio.Semaphore(OPEN)
        self.reading = asyncio.Semaphore(BUSY)
        self.rendering = asyncio.Semaphore(BUSY)  # at a deadline nobody has the time to wait for those that read
        self.pids: set[int] = set()


class Readers:
    """Starts readers, one a document."""

    def __init__(self, config: ReaderConfig, places: Places) -> None:
        self._config = config
        self._places = places

    @asynccontextmanager
    async def read(
        self, what: ReadDocument | ReadLine, body: Spool, answer: Spool, seeds: Seeds, place: int = 0
    ) -> AsyncIterator[Reader]:
        """A reader that has read the document in `body`, for as long as the context lasts. Raises RequestError."""
        async with self._places.open:
            reader = Reader(body, answer, self._places)
            try:
                await reader.start(self._config)
                await reader.open(Open(what, seeds, place))
                yield reader
            finally:
                await reader.close()


class Reader:
    """One large document in a process of its own."""

    def __init__(self, body: Spool, answer: Spool, places: Places) -> None:
        self._body = body
        self._answer = answer
        self._places = places
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()
        self._replies: asyncio.Queue[ToEdge | None] = asyncio.Queue()
        self.ended = asyncio.Event()
        """Set when the process is gone, whoever ended it."""
        self.opened = Opened(0)
        """What the document turned out to be."""

    async def start(self, config: ReaderConfig) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = self._spawn(theirs.fileno())
        except OSError as error:
            ours.close()
            raise _no_process() from error
        self._places.pids.add(self._process.pid)
        stream, self._writer = await asyncio.open_connection(sock=ours)
        self._listener = asyncio.create_task(self._listen(stream), name="a reader's answers")
        await self._ask(Load(config), Done)

    def _spawn(self, link: int) -> subprocess.Popen[bytes]:
        files = (link, self._body.fileno(), self._answer.fileno())
        return subprocess.Popen(
            [*_COMMAND, *map(str, files)],
            pass_fds=files,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # native code's last words are no log lines, and could quote the document
            start_new_session=True,  # a Ctrl-C in the terminal reaches the edge alone
            env={name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | _ENVIRONMENT,
        )

    async def open(self, question: Open) -> None:
        async with self._places.reading:
            self.opened = await self._ask(question, Opened)

    async def item(self, index: int) -> Item:
        return await self._ask(Get(index), Item)

    async def put(self, index: int, result: Result) -> None:
        for completion in result.completions:  # one a message: with log probabilities each can be large
            await self._ask(Put(index, result.prompt_tokens, completion), Done)

    async def render(self, refusal: Failure | None = None) -> str:
        """Have the answer's file written; returns its content type. `refusal` is a line's error."""
        async with self._places.rendering:
            rendered = await self._ask(Render() if refusal is None else Refuse(refusal), Rendered)
        self._answer.size = rendered.size
        return rendered.content_type

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._listener is not None:
            self._listener.cancel()
        if self._process is not None:
            self._process.kill()
            try:
                await asyncio.shield(asyncio.to_thread(self._process.wait))
            finally:
                self._places.pids.discard(self._process.pid)

    async def check(self) -> None:
        """Raises what ended the reader, once it has ended. For as long as its document is generated from."""
        await self.ended.wait()
        raise await self._cause_of_death()

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        try:
            while True:
                (length,) = HEADER.unpack(await stream.readexactly(HEADER.size))
                self._replies.put_nowait(to_edge.decode(await stream.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._replies.put_nowait(None)
            self.ended.set()

    async def _ask(self, question: ToReader, kind: type[T]) -> T:
        assert self._writer is not None, "start comes first"
        async with self._asking:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    with contextlib.suppress(ConnectionError, RuntimeError):  # the latter is uvloop's, of a closed one
                        self._writer.write(encode(question))
                        await self._writer.drain()
                    answer = await self._replies.get()
            except TimeoutError:
                raise _broken(f"no answer in {_PATIENCE_S:.0f} s") from None
        match answer:
            case None:
                self._replies.put_nowait(None)  # whoever asks next is to know, too
                raise await self._cause_of_death()
            case Failure():
                raise answer.error()
            case Broken():
                raise _broken(answer.cause)
        assert isinstance(answer, kind), f"{type(answer).__name__} is no answer to {type(question).__name__}"
        return answer

    async def _cause_of_death(self) -> RequestError:
        """Native code without memory ends in a signal, as does a process that the kernel chose to free some."""
        assert self._process is not None, "it is dead"
        try:
            status = await asyncio.to_thread(self._process.wait, _LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            return _broken("it hung up and went on")
        return too_much_memory() if status < 0 else _broken(f"exit status {status}")


def _broken(cause: str) -> RequestError:
    logger.error("the reader of a document failed: %s", cause, extra={"action": "reader_failed"})
    return RequestError("internal error; the log has the cause under this invocation's id")


def _no_process() -> RequestError:
    error = RequestError("no process can be started to read the document; try again", code="out_of_processes")
    error.status = 503
    return error
