"""A JSON-lines file worked through as a stream: bounded work in flight, answers in input order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from .dialects.batch import Line, is_blank, read_line
from .errors import InvalidRequest, RequestError
from .invocation import Invocation, Prepared, Service
from .spool import OrderedSpool, Spool


class BatchRun:
    """Owns the lines of one batch that are being worked on.

    Answers go to the spool as they come and are put in order when they are read: a long line holds up nothing.
    """

    def __init__(self, service: Service, invocation: Invocation, answers: OrderedSpool, longest_line: int) -> None:
        self._service = service
        self._invocation = invocation
        self._answers = answers
        self._longest_line = longest_line
        self.items = 0
        self.failed = 0

    async def run(self, body: Spool) -> None:
        """Raises the error that ended the whole batch: the engine's death, a full disk, a file without a line."""
        lines = self._numbered_lines(body)
        room = asyncio.Semaphore(self._invocation.work_ahead)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await room.acquire()
                    item = await self._invocation.in_worker(lambda: next(lines, None))
                    if item is None:
                        break
                    place, self.items = self.items, self.items + 1
                    task = group.create_task(self._answer(place, *item))
                    task.add_done_callback(lambda _: room.release())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if not self.items:
            raise InvalidRequest("the body has no items: expected one JSON object a line", code="empty_batch")

    def _numbered_lines(self, body: Spool) -> Iterator[tuple[int, bytes]]:
        for number, line in enumerate(body.lines(self._longest_line), start=1):
            if not is_blank(line):
                yield number, line

    async def _answer(self, place: int, number: int, text: bytes) -> None:
        line, prepared = await self._invocation.in_worker(lambda: self._prepare(number, text))
        try:
            if line.error is not None:
                raise line.error
            assert line.call is not None
            results = await self._invocation.run_all(prepared)
        except RequestError as error:
            if error.status >= 500:
                raise
            self.failed += 1
            answer = line.failure(error)
        else:
            answer = await self._invocation.in_worker(lambda: line.success(results, self._service.name))
        await self._invocation.in_worker(lambda: self._answers.put(place, answer))

    def _prepare(self, number: int, text: bytes) -> tuple[Line, list[Prepared]]:
        name = f"line {number}"
        if len(text) > self._longest_line:
            too_long = InvalidRequest(
                f"{name} is longer than {self._longest_line} bytes", param=name, code="line_too_long"
            )
            return Line(form="bare", error=too_long), []
        line = read_line(text, number)
        if line.call is None:
            return line, []
        try:
            return line, [self._invocation.prepare(item) for item in line.call.items]
        except RequestError as error:
            return Line(form=line.form, error=error, custom_id=line.custom_id, model_input=line.model_input), []
