"""An invocation: the work of one request, from items to results, and everything that must be freed with it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from container.core import Completion, Result
from container.engine.sequence import Sampling
from container.errors import DeadlineExceeded
from container.invocations.deadline import Deadline
from container.invocations.service import Service
from container.jobs.generation import Waiter
from container.jobs.job import Attachment
from container.reader.client import Reader
from container.telemetry.json_logs import invocation_id
from container.telemetry.progress import Snapshot
from container.tokenization.preparer import Prepared, unstarted_completions

logger = logging.getLogger(__name__)

T = TypeVar("T")
_AHEAD = 2
_BYTES_PER_TOKEN = 6
_BYTES_PER_LOGPROB = 100


@dataclass(slots=True)
class Tally:
    """Counts what a document has to show, as its results are not all in memory."""

    has_unfinished: bool = False
    has_tokens: bool = False
    """True once there is a token; a finished text has at least the one that ended it."""

    def add(self, result: Result) -> None:
        self.has_unfinished |= any(completion.finish_reason == "deadline" for completion in result.completions)
        self.has_tokens |= any(completion.token_ids for completion in result.completions)


class Invocation:
    """Owns the generations of one request; `close` frees them, however the request ended.

    `attachment` is set before anything is generated, and given back by `release`.
    """

    def __init__(self, service: Service, deadline: Deadline) -> None:
        self.attachment: Attachment | None = None
        """The part in the request's job, once the body has come."""
        self._service = service
        self._deadline = deadline
        self._waiters: set[Waiter] = set()
        self._timeouts: set[asyncio.Timeout] = set()
        self._answer_bytes = 0
        self.id = invocation_id.get() or ""
        self.prompt_tokens = 0
        self.done_tokens = 0
        """Completion tokens of finished texts."""
        self.max_completion_tokens: int | None = None
        """Sum of what all items may generate, where it is known."""
        self.unfinished = 0
        """Number of texts that the deadline cut or never let begin, and of a batch's lines that were not even read."""
        self.body_bytes = 0
        self.items = 0
        """Number of items known so far: they, too, tell how long the answer takes."""
        self.items_done = 0
        self.is_cut = False
        """True once the deadline has come: nothing is generated any more. Any thread may read it."""
        self._clock = asyncio.get_running_loop().call_soon(self._check_deadline)
        if service.progress is not None:
            service.progress.open(self.snapshot)

    def _check_deadline(self) -> None:
        running = [waiter.generation.sequence for waiter in self._waiters]
        running_bytes = sum(_size(len(sequence.output_ids), sequence.sampling) for sequence in running)
        left_s = self._deadline.left_s(size=self.body_bytes + self._answer_bytes + running_bytes, items=self.items)
        loop = asyncio.get_running_loop()
        if left_s > 0:  # once a second, because an answer that grows needs more time
            self._clock = loop.call_later(min(left_s, 1.0), self._check_deadline)
            return
        self.is_cut = True
        for waiter in self._waiters:
            waiter.cut()
        for timeout in self._timeouts:
            timeout.reschedule(loop.time())

    def snapshot(self) -> Snapshot:
        """Describe how far the invocation is. All items are known once there is a job, which is made of the body."""
        job = None if self.attachment is None else self.attachment.job
        running = sum(len(waiter.generation.sequence.output_ids) for waiter in self._waiters)
        return Snapshot(
            id=self.id,
            job=None if job is None else job.name,
            job_id=None if job is None else job.id,
            items=self.items,
            has_all_items=job is not None,
            items_done=self.items_done,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.done_tokens + running,
            done_tokens=self.done_tokens,
            resumed_tokens=0 if self.attachment is None else self.attachment.resumed_tokens,
            max_completion_tokens=self.max_completion_tokens,
            deadline_left_s=self._deadline.left_s(),
        )

    def exceeded(self) -> DeadlineExceeded:
        return self._deadline.exceeded()

    @asynccontextmanager
    async def before_deadline(self) -> AsyncIterator[None]:
        """Let the deadline end what comes before generation. Raises DeadlineExceeded."""
        if self.is_cut:
            raise self.exceeded()
        try:
            async with asyncio.timeout(None) as timeout:
                self._timeouts.add(timeout)
                try:
                    yield
                finally:
                    self._timeouts.discard(timeout)
        except TimeoutError:
            if timeout.expired():
                raise self.exceeded() from None
            raise

    def count_body(self, chunk: bytes) -> None:
        """Count a piece of a batch's body: how large it is tells how long its answer takes."""
        self.body_bytes += len(chunk)
        self.items += chunk.count(b"\n")

    @property
    def work_ahead(self) -> int:
        """Number of items to have under way: enough that the engine never waits for one."""
        return _AHEAD * self._service.info.max_running

    async def run_all(self, prepared: Sequence[Prepared], line: int | None = None) -> list[Result]:
        """Return results in the items' order. If one fails, the others are ended and its error is raised.

        `line` is their line in a batch, counted from 0; without one they are a document's. Raises DeadlineExceeded
        where the deadline leaves nothing worth showing.
        """
        work = (self.run(item, line, index) for index, item in enumerate(prepared))
        results = await _gather(work, self.work_ahead)
        tally = Tally()
        for result in results:
            tally.add(result)
        self._check(tally)
        return results

    def _check(self, tally: Tally) -> None:
        if tally.has_unfinished and (not tally.has_tokens or self._deadline.on_deadline == "error"):
            raise self.exceeded()

    async def run_read(self, reader: Reader, line: int | None = None) -> None:
        """Generate every item of a large document, and give each result to its reader. The first error ends the others.

        The reader gets no result of items that the deadline leaves no time for. Raises DeadlineExceeded as `run_all`.
        """
        tally = Tally()
        work = (self._run_one_read(reader, line, index, tally) for index in range(reader.opened.items))
        running = asyncio.create_task(_gather(work, self.work_ahead))
        checking = asyncio.create_task(reader.check())
        try:
            await asyncio.wait({running, checking}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await checking
            await running
            self._check(tally)
        finally:
            running.cancel()
            checking.cancel()
            await asyncio.gather(running, checking, return_exceptions=True)

    async def _run_one_read(self, reader: Reader, line: int | None, index: int, tally: Tally) -> None:
        if self.is_cut:
            self.unfinished += 1
            tally.has_unfinished = True
            return
        result = await self.run(await reader.item(index), line, index)
        tally.add(result)
        await reader.put(index, result.completions)

    async def run(self, prepared: Prepared, line: int | None, item: int) -> Result:
        """Generate one item's choices. Raises RequestError. After the deadline nothing begins."""
        if self.is_cut:
            self.unfinished += len(prepared.samplings)
            completions = unstarted_completions(prepared.samplings)
        else:
            self.prompt_tokens += len(prepared.prompt_ids)
            choices = range(len(prepared.samplings))
            work = (self._generate(prepared, line or 0, item, choice) for choice in choices)
            completions = tuple(await _gather(work, len(prepared.samplings)))
            self.items_done += line is None
        return Result(prompt_text=prepared.prompt_text, prompt_tokens=len(prepared.prompt_ids), completions=completions)

    async def _generate(self, prepared: Prepared, line: int, item: int, choice: int) -> Completion:
        assert self.attachment is not None, "a job comes first"
        waiter = self.attachment.generate(self._service.generator, prepared, line, item, choice)
        self._waiters.add(waiter)
        if self.is_cut:  # since this item's first sampling began
            waiter.cut()
        try:
            await waiter.done
        finally:
            self._waiters.discard(waiter)
            self.attachment.leave(waiter)
        sampling = prepared.samplings[choice]
        self.done_tokens += waiter.tokens
        self._answer_bytes += _size(waiter.tokens, sampling)
        if waiter.finish_reason == "deadline":
            self.unfinished += 1
            self._service.metrics.sequences.labels("deadline").inc()
        return await run_in_thread(self._service.writers, waiter.completion)

    @property
    def is_resumable(self) -> bool:
        """True if the journal has all that was generated, and outlives this container."""
        return self.attachment is not None and self._service.jobs.is_saved(self.attachment)

    def close(self) -> dict[str, object]:
        """Free what is still queued or running; return what the request's log line says of the work."""
        self._clock.cancel()
        if self._service.progress is not None:
            self._service.progress.close(self.snapshot)
        waiters, self._waiters = self._waiters, set()
        fields: dict[str, object] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.done_tokens,
            "deadline": "cut" if self.is_cut and self.unfinished else "met",
            "unfinished": self.unfinished,
        }
        if self.attachment is None:
            return fields
        for waiter in waiters:
            self.attachment.leave(waiter)
        if self.unfinished:
            self._service.jobs.save_soon(self.attachment)
        if self.attachment.changed_prompts:
            message = "%d texts were begun with another prompt than the request has now, and are generated anew"
            extra = {"action": "prompts_changed", "job": self.attachment.job.label}
            logger.warning(message, self.attachment.changed_prompts, extra=extra)
        return fields | {"job": self.attachment.job.label, "resumed_tokens": self.attachment.resumed_tokens}

    def begin_answer(self) -> None:
        """Tell the job that all is generated, and that the client is about to get it."""
        if self.attachment is not None and not self.unfinished:
            self._service.jobs.set_slot_aside(self.attachment)

    @property
    def has_open_slot(self) -> bool:
        """True if `close_slot` is to be called before the client has the whole answer."""
        if self.attachment is None or self.unfinished:
            return False
        return self._service.jobs.has_open_slot(self.attachment)

    async def close_slot(self) -> None:
        """Make sure that no later request continues this one. Until then, one that is cut can be sent again."""
        if self.attachment is not None:
            await self._service.jobs.close_slot(self.attachment, max(0.0, self._deadline.left_s()))

    def release(self, *, is_answered: bool) -> None:
        """Leave the job. `is_answered`: the client has taken the answer."""
        if self.attachment is not None:
            self._service.jobs.release(self.attachment, is_complete=is_answered and not self.unfinished)


def _size(tokens: int, sampling: Sampling) -> int:
    """Return about how many bytes the tokens take in an answer."""
    scored = 0 if sampling.logprobs is None else 1 + sampling.logprobs
    return tokens * (_BYTES_PER_TOKEN + _BYTES_PER_LOGPROB * scored)


async def _gather(work: Iterable[Coroutine[Any, Any, T]], limit: int) -> list[T]:
    """Return the results in order, running at most `limit` at once. The first error ends the others and is raised."""
    slots = asyncio.Semaphore(limit)
    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            await slots.acquire()
            for coroutine in work:
                task = group.create_task(coroutine)
                task.add_done_callback(lambda _: slots.release())
                tasks.append(task)
                await slots.acquire()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def run_in_thread(threads: ThreadPoolExecutor, function: Callable[[], T]) -> asyncio.Future[T]:
    """Run a function in one of the threads. Its log lines carry the invocation's id, too."""
    context = contextvars.copy_context()
    return asyncio.get_running_loop().run_in_executor(threads, partial(context.run, _turn_panic_into_error, function))


def _turn_panic_into_error(function: Callable[[], T]) -> T:
    try:
        return function()
    except Exception:
        raise
    except BaseException as panic:  # native code's panic is not an Exception, and its text may quote a prompt
        name = type(panic).__name__
    raise RuntimeError(f"{name} in native code")
