"""The server's side of readers: starts one for a large document, asks it, notices its death, and ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

from container.core import Completion, Constants
from container.dialects.document import RequestHead
from container.disk.spool import Spool
from container.errors import RequestError
from container.processes.child_process import ChildProcess, python_command
from container.reader import messages
from container.tokenization.preparer import Prepared

logger = logging.getLogger(__name__)

MAX_INLINE_BYTES = 1 << 20
"""Largest document, or line of JSON lines, that is read without a reader."""
MAX_OPEN = 16
"""Documents that have a reader at the same time; each holds a hundred megabytes and its document."""
MAX_BUSY = 2
"""Readers that read at the same time, and as many that render. Each takes a core, and may take gigabytes."""
_ANSWER_TIMEOUT_S = 900.0
"""Seconds for one answer of a reader. Tokenizing 64 MiB takes a minute."""
_EXIT_TIMEOUT_S = 5.0
"""Seconds from the end of the connection to the end of the process."""

_COMMAND = python_command("container.reader.process")
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Libraries that reserve memory for a thread a core, which here have nothing to compute.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
T = TypeVar("T", bound=messages.ToServer)


class ReaderLimits:
    """Owns the limits on readers that are open or busy, and knows those that are alive."""

    def __init__(self) -> None:
        self.open = asyncio.Semaphore(MAX_OPEN)
        self.reading = asyncio.Semaphore(MAX_BUSY)
        self.rendering = asyncio.Semaphore(MAX_BUSY)  # at a deadline there is no time to wait for those that read
        self.pids: set[int] = set()


class Readers:
    """Starts readers, one a document."""

    def __init__(self, config: messages.ReaderConfig, limits: ReaderLimits) -> None:
        self._config = config
        self._limits = limits

    @asynccontextmanager
    async def read(
        self, source: RequestHead | messages.ReadLine, body: Spool, answer: Spool, constants: Constants, line: int = 0
    ) -> AsyncIterator[Reader]:
        """Yield a reader that has read the document in `body`, and end it with the context. Raises RequestError."""
        async with self._limits.open:
            reader = await Reader.start(body, answer, self._limits)
            try:
                await reader.open(self._config, messages.Open(source, constants, line))
                yield reader
            finally:
                await reader.close()


class Reader:
    """One large document in a process of its own."""

    def __init__(
        self, child: ChildProcess, replies: asyncio.Queue[bytes | None], answer: Spool, limits: ReaderLimits
    ) -> None:
        """Own the child, whose encoded replies come by the queue; None follows the last one."""
        self._child = child
        self._replies = replies
        self._answer = answer
        self._limits = limits
        self._lock = asyncio.Lock()
        self.opened = messages.Opened(0)
        """Summary of the document, once it is read."""
        limits.pids.add(child.pid)
        child.closed.add_done_callback(lambda _: replies.put_nowait(None))

    @classmethod
    async def start(cls, body: Spool, answer: Spool, limits: ReaderLimits) -> Reader:
        """Start the process. Raises RequestError."""
        replies: asyncio.Queue[bytes | None] = asyncio.Queue()
        environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | _ENVIRONMENT
        try:
            child = await ChildProcess.start(
                _COMMAND,
                replies.put_nowait,
                environment=environment,
                files=(body.fileno(), answer.fileno()),
                stderr=subprocess.DEVNULL,  # output of native code would be no log line, and could quote the document
            )
        except OSError as cause:
            error = RequestError("no process can be started to read the document; try again", code="out_of_processes")
            error.status = 503
            raise error from cause
        return cls(child, replies, answer, limits)

    async def open(self, config: messages.ReaderConfig, question: messages.Open) -> None:
        """Have the document read; `opened` says what it is. Raises RequestError."""
        await self._ask(messages.Load(config), messages.Done)
        async with self._limits.reading:
            self.opened = await self._ask(question, messages.Opened)

    async def item(self, index: int) -> Prepared:
        """Return one item. Its text is empty: the reader keeps that."""
        return await self._ask(messages.Get(index), Prepared)

    async def put(self, index: int, completions: Iterable[Completion]) -> None:
        """Hand an item's completions to the reader."""
        for completion in completions:  # one a message: with log probabilities each can be large
            await self._ask(messages.Put(index, completion), messages.Done)

    async def render(self, error: messages.Failure | None = None) -> str:
        """Have the answer's file written, for a line with an error if there is one. Return its content type."""
        async with self._limits.rendering:
            rendered = await self._ask(messages.Render(error), messages.Rendered)
        self._answer.size = rendered.size
        return rendered.content_type

    async def check(self) -> None:
        """Wait until the reader has ended, and raise the error that ended it. Runs while its document is served."""
        await asyncio.shield(self._child.closed)
        raise await self._cause_of_death()

    async def close(self) -> None:
        """End the process."""
        self._child.close()
        self._child.kill()
        try:
            await asyncio.shield(self._child.wait())
        finally:
            self._limits.pids.discard(self._child.pid)

    async def _ask(self, question: messages.ToReader, kind: type[T]) -> T:
        async with self._lock:
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    self._child.send(question)
                    encoded = await self._replies.get()
            except TimeoutError:
                raise _broken(f"no answer in {_ANSWER_TIMEOUT_S:.0f} s") from None
        if encoded is None:
            self._replies.put_nowait(None)  # for the next question
            raise await self._cause_of_death()
        answer = messages.to_server.decode(encoded)
        match answer:
            case messages.Failure():
                raise answer.error()
            case messages.Broken():
                raise _broken(answer.cause)
        assert isinstance(answer, kind), f"{type(answer).__name__} is no answer to {type(question).__name__}"
        return answer

    async def _cause_of_death(self) -> RequestError:
        """Return the error of a reader that has died.

        Native code without memory ends in a signal, and so does a process that the kernel chose to free some.
        """
        status = await self._child.wait(_EXIT_TIMEOUT_S)
        if status is None:
            return _broken("the reader closed its connection but did not exit")
        return messages.too_much_memory() if status < 0 else _broken(f"exit status {status}")


def _broken(cause: str) -> RequestError:
    logger.error("the reader of a document failed: %s", cause, extra={"action": "reader_failed"})
    return RequestError("internal error; the log has the cause under this invocation's id")
