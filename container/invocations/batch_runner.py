"""A JSON-lines file worked through as a stream: bounded work in flight, answers in input order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from container.core import Constants
from container.dialects.batch import Line, is_blank, is_unread, name_line, name_long_line, name_torn_line, read_line
from container.dialects.sniffing import SNIFFED_BYTES, guess
from container.disk.ordered_spool import OrderedSpool, close_soon
from container.disk.seen_ids import SeenIds
from container.disk.spool import Spool, SpooledLine
from container.errors import DeadlineExceeded, EngineFailure, InvalidRequest, OutOfSpace, RequestError, Unavailable
from container.invocations.invocation import Invocation, run_in_thread
from container.invocations.service import Service
from container.reader.client import MAX_INLINE_BYTES
from container.reader.messages import Failure, ReadLine
from container.tokenization.preparer import Prepared

_SLICE_ITEMS = 32
_SLICE_LINES = 4096
_SLICE_BYTES = 256 << 10
"""Bounds of what a worker thread reads and tokenizes in one go: items, lines with the blank ones, and weight."""
_READERS = 4
"""Large lines of one batch that are under way."""
_MAX_BYTES_UNDER_WAY = 8 << 20
_BYTES_PER_TEXT = 8 << 10
"""Memory that a text takes at most until it is answered, beside its line and its tokens."""

_ENDS_ALL = (EngineFailure, Unavailable, OutOfSpace)
"""Errors that every other line would meet, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A line under way. `index` counts items from 0; `line` is None if it takes a reader of its own."""

    index: int
    spooled: SpooledLine
    line: Line | None
    prepared: tuple[Prepared, ...] = ()

    @property
    def weight(self) -> int:
        """About the bytes that it takes: a short line may ask for thousands of texts."""
        return self.spooled.size + _BYTES_PER_TEXT * sum(len(item.samplings) for item in self.prepared)


class BatchRunner:
    """Owns the lines of one batch that are being worked on.

    Answers go to the spool as they come and are put in order when they are read: a long line holds up nothing. After
    the deadline, lines are only named in the answer, each with the same error.
    """

    def __init__(
        self,
        present_service: Callable[[], Service],
        invocation: Invocation,
        *,
        answers: OrderedSpool,
        spool_dir: str,
        max_line_bytes: int,
    ) -> None:
        """`present_service` returns the one whose limits are the running engine's: another engine may have less
        memory."""
        self._present_service = present_service
        self._invocation = invocation
        self._answers = answers
        self._spool_dir = spool_dir
        self._max_line_bytes = max_line_bytes
        self._seen = SeenIds(spool_dir)
        self.items = 0
        self._failed = 0
        self._skipped = 0  # counted by the worker thread, as `_failed` is by the event loop
        self._has_readable_line = False
        self._first_fault: RequestError | Failure | None = None
        """Error of the first line that could not be read."""

    @property
    def failed(self) -> int:
        return self._failed + self._skipped

    async def run(self, body: Spool, constants: Constants) -> None:
        """Answer every line. `constants` are those of the batch's part in its job.

        Raises the error that ended the whole batch: the engine's death, a full disk, a file without a line that can be
        read.
        """
        try:
            async with asyncio.TaskGroup() as group:
                await self._start_all(body, constants, group)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._seen.close()
            self._invocation.unfinished += self._skipped
        if not self.items:
            raise InvalidRequest("the body has no items: expected one JSON object a line", code="empty_batch")
        if not self._has_readable_line:
            raise await asyncio.to_thread(self._nothing_read, body)

    def _nothing_read(self, body: Spool) -> InvalidRequest:
        fault, seems = self._first_fault, guess(body.read_at(0, SNIFFED_BYTES))
        assert fault is not None, "a line that was not read has an error"
        why = f"{fault.message}; expected is one JSON object a line" if seems is None else f"it seems to be {seems}"
        message = f"no line of the body could be read: {why}"
        return InvalidRequest(message, param=fault.param, code="unreadable_batch")

    def _note(self, error: RequestError | Failure | None) -> None:
        """Note how the reading of a line ended, in any thread."""
        if error is None or not is_unread(error.param):
            self._has_readable_line = True
        elif self._first_fault is None:
            self._first_fault = error

    async def _start_all(self, body: Spool, constants: Constants, group: asyncio.TaskGroup) -> None:
        service = self._present_service()
        under_way = WeightedSemaphore(self._invocation.work_ahead, _MAX_BYTES_UNDER_WAY)
        readers = asyncio.Semaphore(_READERS)
        slices = self._slices(body, constants)
        while True:
            # At the deadline there is no time to wait behind documents that are read.
            threads = service.writers if self._invocation.is_cut else service.workers
            entries = await run_in_thread(threads, lambda: next(slices, None))
            if entries is None:
                return
            for entry in entries:
                if entry.line is not None:
                    await under_way.acquire(entry.weight)
                    task = group.create_task(self._answer(entry, entry.line))
                    task.add_done_callback(partial(under_way.release, entry.weight))
                else:
                    await readers.acquire()
                    opened = asyncio.Event()
                    task = group.create_task(self._answer_large(entry, body, constants, opened))
                    task.add_done_callback(lambda _: readers.release())
                    await opened.wait()  # its name comes before those of later lines

    def _slices(self, body: Spool, constants: Constants) -> Iterator[list[_Entry]]:
        """Yield the lines in slices, each read in a worker thread. A slice of blank lines, which take time, too, is
        empty."""
        entries: list[_Entry] = []
        lines = weight = 0
        for spooled in body.lines(min(self._max_line_bytes, MAX_INLINE_BYTES)):
            size = spooled.size
            if spooled.text is None or not is_blank(spooled.text):
                index, self.items = self.items, self.items + 1
                if self._invocation.is_cut:
                    # Answered at once, and here, as there may be a hundred thousand.
                    line = self._only_named(spooled, body)
                    self._note(line.error)
                    self._answers.put(index, line.failure(line.error or self._invocation.exceeded()))
                    self._skipped += 1
                else:
                    entries.append(self._read(spooled, body, index, constants))
                    size = entries[-1].weight
            lines, weight = lines + 1, weight + size
            if len(entries) == _SLICE_ITEMS or lines == _SLICE_LINES or weight >= _SLICE_BYTES:
                yield entries
                entries, lines, weight = [], 0, 0
        yield entries

    def _only_named(self, spooled: SpooledLine, body: Spool) -> Line:
        if spooled.size > self._max_line_bytes:
            return self._too_long(spooled, body)
        if spooled.text is None:
            return name_long_line(body.read_at(spooled.offset, spooled.size), spooled.number)
        return name_line(spooled.text, spooled.number)

    def _read(self, spooled: SpooledLine, body: Spool, index: int, constants: Constants) -> _Entry:
        prepared: tuple[Prepared, ...] = ()
        if spooled.size > self._max_line_bytes:
            line: Line | None = self._too_long(spooled, body)
        elif spooled.text is None:
            line = None
        else:
            line = read_line(spooled.text, spooled.number)
            try:
                self._check_name(line)
                preparer = self._present_service().preparer
                items = () if line.call is None else line.call.items
                prepared = tuple(
                    preparer.prepare(item, constants.seed(index, number), constants.clock)
                    for number, item in enumerate(items)
                )
            except InvalidRequest as error:
                line = line.failed(error)
        if line is not None:
            self._note(line.error)
        return _Entry(index=index, spooled=spooled, line=line, prepared=prepared)

    def _too_long(self, spooled: SpooledLine, body: Spool) -> Line:
        name = f"line {spooled.number}"
        message = f"{name} is longer than {self._max_line_bytes} bytes"
        named = name_torn_line(body.read_at(spooled.offset, min(spooled.size, MAX_INLINE_BYTES)))
        return named.failed(InvalidRequest(message, param=name, code="line_too_long"))

    def _check_name(self, line: Line) -> None:
        """Raises InvalidRequest if an earlier line has the line's name. For a worker thread.

        A line that can't be read takes no name from one that can: it may be a torn copy of it.
        """
        if line.error is not None and is_unread(line.error.param):
            return
        if line.unique_id is not None and not self._seen.add(line.unique_id):
            message = "custom_id is that of an earlier line; each line needs its own"
            raise InvalidRequest(message, param="custom_id", code="duplicate_custom_id")

    async def _answer(self, entry: _Entry, line: Line) -> None:
        try:
            if line.error is not None:
                raise line.error
            results = await self._invocation.run_all(entry.prepared, entry.index)
        except RequestError as error:
            await self._fail(entry, line, error)
        else:
            self._invocation.items_done += 1
            service = self._present_service()
            render = partial(line.success, results, service.name, service.deadline_reason)
            await run_in_thread(service.writers, lambda: self._answers.put(entry.index, render()))

    async def _fail(self, entry: _Entry, line: Line, error: RequestError) -> None:
        if isinstance(error, _ENDS_ALL):
            raise error
        self._failed += 1
        self._invocation.items_done += 1
        writers = self._present_service().writers
        await run_in_thread(writers, lambda: self._answers.put(entry.index, line.failure(error)))

    async def _answer_large(self, entry: _Entry, body: Spool, constants: Constants, opened: asyncio.Event) -> None:
        service, spooled = self._present_service(), entry.spooled
        answer = Spool(self._spool_dir)
        line = None
        try:
            async with AsyncExitStack() as stack:
                async with self._invocation.before_deadline():
                    document = ReadLine(spooled.number, spooled.offset, spooled.size)
                    reading = service.readers.read(document, body, answer, constants, entry.index)
                    reader = await stack.enter_async_context(reading)
                failure = reader.opened.error
                fault = None if failure is None else failure.error()
                line = Line(form=reader.opened.form, custom_id=reader.opened.custom_id, error=fault)
                self._note(failure)
                try:
                    await run_in_thread(service.workers, partial(self._check_name, line))
                except InvalidRequest as error:
                    failure = Failure.of(error)
                opened.set()
                if failure is None:
                    try:
                        await self._invocation.run_read(reader, entry.index)
                    except DeadlineExceeded as error:
                        failure = Failure.of(error)
                await reader.render(failure)
            await run_in_thread(service.writers, lambda: self._answers.put_file(entry.index, answer))
            self._failed += failure is not None
            self._invocation.items_done += 1
        except RequestError as error:
            if line is None:
                line = await run_in_thread(service.writers, lambda: self._unopened(spooled, body))
                self._note(line.error)
                error = line.error or error
            self._invocation.unfinished += isinstance(error, DeadlineExceeded)
            await self._fail(entry, line, error)
        finally:
            opened.set()
            close_soon(answer)

    def _unopened(self, spooled: SpooledLine, body: Spool) -> Line:
        """Return the line whose reader never told its name, with an error if it is an earlier line's."""
        line = self._only_named(spooled, body)
        try:
            self._check_name(line)
        except InvalidRequest as error:
            return line.failed(error)
        return line


class WeightedSemaphore:
    """Bounds work in flight, by number and by weight. Only one task may acquire."""

    def __init__(self, max_count: int, max_weight: int) -> None:
        self._max_count = max_count
        self._max_weight = max_weight
        self._count = 0
        self._weight = 0
        self._released = asyncio.Event()

    async def acquire(self, weight: int) -> None:
        """Wait for room. Work that is heavier than the limit runs alone."""
        while self._count == self._max_count or (self._count and self._weight + weight > self._max_weight):
            self._released.clear()
            await self._released.wait()
        self._count += 1
        self._weight += weight

    def release(self, weight: int, _task: object = None) -> None:
        self._count -= 1
        self._weight -= weight
        self._released.set()
