"""A JSON-lines file worked through as a stream: bounded work in flight, answers in input order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from container.core import Call, Seeds
from container.dialects.batch import Line, is_blank, name_line, name_long_line, read_line
from container.disk.seen_ids import SeenIds
from container.disk.spool import OrderedSpool, Spool, SpooledLine, close_soon
from container.errors import DeadlineExceeded, EngineFailure, InvalidRequest, OutOfSpace, RequestError, Unavailable
from container.invocations.invocation import Invocation, Service
from container.reader.client import MAX_INLINE_BYTES, Reader
from container.reader.messages import Failure, Opened, ReadLine
from container.tokenization.preparer import Prepared

_SLICE_LINES = 32
_SLICE_SEEN = 4096
_SLICE_BYTES = 256 << 10
"""Items that a worker thread reads and tokenizes in one go, or so many lines, or so much of their weight."""
_READERS = 4
"""Large lines of one batch that are under way."""
_BYTES_UNDER_WAY = 8 << 20
_BYTES_PER_TEXT = 8 << 10
"""What a text to be generated takes at most until it is answered, beside its line and its tokens."""

_ENDS_ALL = (EngineFailure, Unavailable, OutOfSpace)
"""What no other line would fare better with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A line on its way. `read` is None where it takes a reader of its own."""

    place: int
    spooled: SpooledLine
    read: Line | None
    prepared: tuple[Prepared, ...] = ()

    @property
    def weight(self) -> int:
        """About the bytes that it takes: a short line may ask for thousands of texts."""
        return self.spooled.size + _BYTES_PER_TEXT * sum(len(one.samplings) for one in self.prepared)


class BatchRun:
    """Owns the lines of one batch that are being worked on.

    Answers go to the spool as they come and are put in order when they are read: a long line holds up nothing. After
    the deadline, lines are only named in the answer, each with the same error.
    """

    _seeds: Seeds
    """Of the batch's job, which is known when the body is."""

    def __init__(
        self,
        service: Callable[[], Service],
        invocation: Invocation,
        *,
        answers: OrderedSpool,
        spool_dir: str,
        longest_line: int,
    ) -> None:
        """`service` tells the present one, whose limits are its engine's: another engine may have less memory."""
        self._service = service
        self._invocation = invocation
        self._answers = answers
        self._spool_dir = spool_dir
        self._longest_line = longest_line
        self._seen = SeenIds(spool_dir)
        self.items = 0
        self._failed = 0
        self._skipped = 0  # the worker's count, as the former is the event loop's

    @property
    def failed(self) -> int:
        return self._failed + self._skipped

    async def counting(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The body on its way to the disk: how large it is tells how long its answer takes."""
        async for chunk in chunks:
            self._invocation.body_bytes += len(chunk)
            self._invocation.items += chunk.count(b"\n")
            yield chunk

    async def run(self, body: Spool, seeds: Seeds) -> None:
        """`seeds` are those of the batch's job.

        Raises the error that ended the whole batch: the engine's death, a full disk, a file without a line.
        """
        self._seeds = seeds
        try:
            async with asyncio.TaskGroup() as group:
                await self._start_all(body, group)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._seen.close()
            self._invocation.unfinished += self._skipped
        if not self.items:
            raise InvalidRequest("the body has no items: expected one JSON object a line", code="empty_batch")

    async def _start_all(self, body: Spool, group: asyncio.TaskGroup) -> None:
        room = Room(self._invocation.work_ahead, _BYTES_UNDER_WAY)
        readers = Room(_READERS, 1)
        slices = self._slices(body)
        while (entries := await self._next(slices)) is not None:
            for entry in entries:
                if entry.read is not None:
                    await room.enter(entry.weight)
                    task = group.create_task(self._answer(entry, entry.read))
                    task.add_done_callback(partial(room.leave, entry.weight))
                else:
                    await readers.enter(0)
                    opened = asyncio.Event()
                    task = group.create_task(self._answer_large(entry, body, opened))
                    task.add_done_callback(partial(readers.leave, 0))
                    await opened.wait()  # its name comes before those of later lines

    async def _next(self, slices: Iterator[list[_Entry]]) -> list[_Entry] | None:
        turn = self._invocation.in_writer if self._invocation.is_cut else self._invocation.in_worker
        return await turn(lambda: next(slices, None))

    def _slices(self, body: Spool) -> Iterator[list[_Entry]]:
        """For a worker thread, one slice at a time. Of blank lines a slice can be empty: they take time, too."""
        entries: list[_Entry] = []
        seen = weight = 0
        for spooled in body.lines(min(self._longest_line, MAX_INLINE_BYTES)):
            size = spooled.size
            if spooled.text is not None and is_blank(spooled.text):
                pass
            elif self._invocation.is_cut:
                self._skip(spooled, body)
            else:
                entries.append(self._entry(spooled))
                size = entries[-1].weight
            seen, weight = seen + 1, weight + size
            if len(entries) == _SLICE_LINES or seen == _SLICE_SEEN or weight >= _SLICE_BYTES:
                yield entries
                entries, seen, weight = [], 0, 0
        yield entries

    def _entry(self, spooled: SpooledLine) -> _Entry:
        place, self.items = self.items, self.items + 1
        line, prepared = self._read(spooled, place)
        return _Entry(place=place, spooled=spooled, read=line, prepared=prepared)

    def _skip(self, spooled: SpooledLine, body: Spool) -> None:
        """Answer a line for which there is no time: at once, and here, as there may be a hundred thousand."""
        place, self.items = self.items, self.items + 1
        line = self._only_named(spooled, body)
        self._answers.put(place, line.failure(line.error or self._invocation.exceeded()))
        self._skipped += 1

    def _only_named(self, spooled: SpooledLine, body: Spool) -> Line:
        if spooled.size > self._longest_line:
            return self._too_long(spooled)
        if spooled.text is None:
            return name_long_line(body.read_at(spooled.offset, spooled.size), spooled.number)
        return name_line(spooled.text, spooled.number)

    def _read(self, spooled: SpooledLine, place: int) -> tuple[Line | None, tuple[Prepared, ...]]:
        if spooled.size > self._longest_line:
            return self._too_long(spooled), ()
        if spooled.text is None:
            return None, ()
        line = read_line(spooled.text, spooled.number)
        try:
            self._check_name(line.unique_id)
            if line.call is not None:
                return line, tuple(self._prepared(line.call, place))
        except InvalidRequest as error:
            return line.failed(error), ()
        return line, ()

    def _prepared(self, call: Call, place: int) -> Iterator[Prepared]:
        for index, item in enumerate(call.items):
            yield self._service().preparer.prepare(item, self._seeds.seed(place, index))

    def _too_long(self, spooled: SpooledLine) -> Line:
        name = f"line {spooled.number}"
        message = f"{name} is longer than {self._longest_line} bytes"
        return Line(form="bare", error=InvalidRequest(message, param=name, code="line_too_long"))

    def _check_name(self, unique_id: str | None) -> None:
        """For a worker thread. Raises InvalidRequest if an earlier line has that name."""
        if unique_id is not None and not self._seen.add(unique_id):
            message = "custom_id is that of an earlier line; each line needs its own"
            raise InvalidRequest(message, param="custom_id", code="duplicate_custom_id")

    async def _answer(self, entry: _Entry, line: Line) -> None:
        try:
            if line.error is not None:
                raise line.error
            results = await self._invocation.run_all(entry.prepared, entry.place)
        except RequestError as error:
            await self._fail(entry, line, error)
        else:
            self._invocation.items_done += 1
            name, answers = self._service().name, self._answers
            await self._invocation.in_writer(lambda: answers.put(entry.place, line.success(results, name)))

    async def _fail(self, entry: _Entry, line: Line, error: RequestError) -> None:
        if isinstance(error, _ENDS_ALL):
            raise error
        self._failed += 1
        self._invocation.items_done += 1
        await self._invocation.in_writer(lambda: self._answers.put(entry.place, line.failure(error)))

    async def _answer_large(self, entry: _Entry, body: Spool, opened: asyncio.Event) -> None:
        answer = Spool(self._spool_dir)
        line = None
        try:
            async with AsyncExitStack() as stack:
                reader = await self._open(entry, body, answer, stack)
                line = Line(form=reader.opened.form, custom_id=reader.opened.custom_id)
                refusal = await self._refusal(reader.opened, line)
                opened.set()
                if refusal is None:
                    refusal = await self._run_read(reader, entry.place)
                await reader.render(refusal)
            await self._invocation.in_writer(lambda: self._answers.put_file(entry.place, answer))
            self._failed += refusal is not None
            self._invocation.items_done += 1
        except RequestError as error:
            if line is None:
                line = await self._invocation.in_writer(lambda: self._unopened(entry.spooled, body))
                error = line.error or error
            self._invocation.unfinished += isinstance(error, DeadlineExceeded)
            await self._fail(entry, line, error)
        finally:
            opened.set()
            close_soon(answer)

    def _unopened(self, spooled: SpooledLine, body: Spool) -> Line:
        """A line whose reader never told its name; an error where it is an earlier line's."""
        line = self._only_named(spooled, body)
        try:
            self._check_name(line.unique_id)
        except InvalidRequest as error:
            return line.failed(error)
        return line

    async def _open(self, entry: _Entry, body: Spool, answer: Spool, stack: AsyncExitStack) -> Reader:
        """Raises DeadlineExceeded where its line is not read in time."""
        what = ReadLine(entry.spooled.number, entry.spooled.offset, entry.spooled.size)
        async with self._invocation.before_deadline():
            reading = self._service().readers.read(what, body, answer, self._seeds, entry.place)
            return await stack.enter_async_context(reading)

    async def _run_read(self, reader: Reader, place: int) -> Failure | None:
        try:
            await self._invocation.run_read(reader, place)
        except DeadlineExceeded as error:
            return Failure.of(error)
        return None

    async def _refusal(self, opened: Opened, line: Line) -> Failure | None:
        try:
            await self._invocation.in_worker(lambda: self._check_name(line.unique_id))
        except InvalidRequest as error:
            return Failure.of(error)
        return opened.error


class Room:
    """Bounds what is under way, by number and by bytes. One task enters."""

    def __init__(self, places: int, most_bytes: int) -> None:
        self._places = places
        self._most_bytes = most_bytes
        self._inside = 0
        self._bytes = 0
        self._somebody_left = asyncio.Event()

    async def enter(self, size: int) -> None:
        """Something larger than all the room enters alone."""
        while self._inside == self._places or (self._inside and self._bytes + size > self._most_bytes):
            self._somebody_left.clear()
            await self._somebody_left.wait()
        self._inside += 1
        self._bytes += size

    def leave(self, size: int, _task: object) -> None:
        self._inside -= 1
        self._bytes -= size
        self._somebody_left.set()
