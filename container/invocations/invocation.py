"""An invocation: the work of one request, from items to results, and everything that must be freed with it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from container.core import Completion, Result
from container.engine.messages import EngineInfo
from container.engine.sequence import Sampling
from container.engine.supervisor.admission import Admission
from container.errors import DeadlineExceeded
from container.invocations.deadline import Deadline
from container.jobs.attachment import Attachment
from container.jobs.generation import Waiter
from container.jobs.registry import JobRegistry
from container.reader.client import Reader, Readers
from container.telemetry.json_logs import invocation_id
from container.telemetry.metrics import Metrics
from container.telemetry.progress import Progress, Snapshot
from container.tokenization import logprobs
from container.tokenization.preparer import Prepared, Preparer, seed_of, unstarted
from container.tokenization.tokenizer import Tokenizer

T = TypeVar("T")
_AHEAD = 2
_BYTES_PER_TOKEN = 6
_BYTES_PER_LOGPROB = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What every invocation works with once the model is ready. Shared, and changed by none of them."""

    tokenizer: Tokenizer
    preparer: Preparer
    readers: Readers
    info: EngineInfo
    admission: Admission
    jobs: JobRegistry
    progress: Progress
    metrics: Metrics
    workers: ThreadPoolExecutor
    """Parses and tokenizes, so that the event loop never waits for a large document."""
    writers: ThreadPoolExecutor
    """Writes answers: at a deadline nobody has the time to wait behind documents that are read."""
    name: str
    """The served model's."""
    identity: str
    """What decides, beside the request, what is generated."""


@dataclass(slots=True)
class Tally:
    """What there is to show for a document, whose results are not all in memory."""

    has_unfinished: bool = False
    has_tokens: bool = False
    """What is finished has at least one, that which ended it."""

    def add(self, result: Result) -> None:
        self.has_unfinished |= any(completion.finish_reason == "deadline" for completion in result.completions)
        self.has_tokens |= any(completion.token_ids for completion in result.completions)


class Invocation:
    """Owns the generations of one request; `close` frees them, however the request ended.

    Before anything is generated it is attached to the request's job.
    """

    def __init__(self, service: Service, deadline: Deadline) -> None:
        self.attachment: Attachment | None = None
        self._service = service
        self._deadline = deadline
        self._waiters: set[Waiter] = set()
        self._limits: set[asyncio.Timeout] = set()
        self._answer_bytes = 0
        self.id = invocation_id.get() or ""
        self.prompt_tokens = 0
        self.done_tokens = 0
        """Of the texts that have ended."""
        self.max_completion_tokens: int | None = None
        """What all items may generate, where it is known."""
        self.unfinished = 0
        """Texts that the deadline cut or never let begin, and lines of a batch that were not even read."""
        self.body_bytes = 0
        self.items = 0
        """As far as they are known: they, too, tell how long the answer takes."""
        self.items_done = 0
        self.is_cut = False
        """The deadline has come: nothing is generated any more. Any thread may ask."""
        self._clock = asyncio.get_running_loop().call_soon(self._look_at_clock)
        service.progress.open(self.snapshot)

    def _look_at_clock(self) -> None:
        """Once a second, because an answer that grows needs more time."""
        left_s = self._deadline.left_s(size=self.body_bytes + self._bytes_of_answer(), items=self.items)
        if left_s > 0:
            self._clock = asyncio.get_running_loop().call_later(min(left_s, 1.0), self._look_at_clock)
        else:
            self._cut()

    def _bytes_of_answer(self) -> int:
        running = (one.generation.sequence for one in self._waiters)
        return self._answer_bytes + sum(_size(len(one.output_ids), one.sampling) for one in running)

    def _cut(self) -> None:
        self.is_cut = True
        for waiter in self._waiters:
            waiter.cut()
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time())

    def snapshot(self) -> Snapshot:
        """Describe how far the invocation is. All items are known once the body has come, from which the job is made."""
        job = None if self.attachment is None else self.attachment.job
        running = sum(len(one.generation.sequence.output_ids) for one in self._waiters)
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
            resumed_tokens=self.resumed_tokens,
            max_completion_tokens=self.max_completion_tokens,
            deadline_left_s=self._deadline.left_s(),
        )

    @property
    def resumed_tokens(self) -> int:
        return 0 if self.attachment is None else self.attachment.resumed_tokens

    def exceeded(self) -> DeadlineExceeded:
        return self._deadline.exceeded()

    @asynccontextmanager
    async def before_deadline(self) -> AsyncIterator[None]:
        """For what comes before generation: ended by the deadline. Raises DeadlineExceeded."""
        if self.is_cut:
            raise self.exceeded()
        try:
            async with asyncio.timeout(None) as limit:
                self._limits.add(limit)
                try:
                    yield
                finally:
                    self._limits.discard(limit)
        except TimeoutError:
            if limit.expired():
                raise self.exceeded() from None
            raise

    async def attach(self, name: str | None, digest: str) -> Attachment:
        """Take part in the request's job; who owns the invocation gives the attachment back.

        Raises Conflict, DeadlineExceeded.
        """
        async with self.before_deadline():
            self.attachment = await self._service.jobs.attach(name, digest)
        return self.attachment

    async def in_worker(self, function: Callable[[], T]) -> T:
        return await _in_thread(self._service.workers, function)

    async def in_writer(self, function: Callable[[], T]) -> T:
        return await _in_thread(self._service.writers, function)

    @property
    def work_ahead(self) -> int:
        """How many items to have under way: enough that the engine never waits for one."""
        return _AHEAD * self._service.info.max_running

    async def run_all(self, prepared: Sequence[Prepared], place: int | None = None) -> list[Result]:
        """Results in the items' order. If one fails, the others are ended and its error is raised.

        `place` is their line in a batch, counted from 0; without one they are a document's. DeadlineExceeded where it
        leaves nothing worth to be shown.
        """
        work = (self.run(one, place, item) for item, one in enumerate(prepared))
        results = await gather_bounded(work, self.work_ahead)
        tally = Tally()
        for result in results:
            tally.add(result)
        self._judge(tally)
        return results

    def _judge(self, tally: Tally) -> None:
        if tally.has_unfinished and (not tally.has_tokens or self._deadline.on_deadline == "error"):
            raise self.exceeded()

    async def run_read(self, reader: Reader, place: int | None = None) -> None:
        """Every item of a large document, each result back to its reader. The first error ends the others.

        Of items that the deadline leaves no time for, the reader hears nothing. DeadlineExceeded as in `run_all`.
        """
        tally = Tally()
        work = (self._run_one_read(reader, place, index, tally) for index in range(reader.opened.items))
        running = asyncio.create_task(gather_bounded(work, self.work_ahead))
        checking = asyncio.create_task(reader.check())
        try:
            await asyncio.wait({running, checking}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await checking
            await running
            self._judge(tally)
        finally:
            running.cancel()
            checking.cancel()
            await asyncio.gather(running, checking, return_exceptions=True)

    async def _run_one_read(self, reader: Reader, place: int | None, index: int, tally: Tally) -> None:
        if self.is_cut:
            self.unfinished += 1
            tally.has_unfinished = True
            return
        result = await self.run(await reader.item(index), place, index)
        tally.add(result)
        await reader.put(index, result.completions)

    async def run(self, prepared: Prepared, place: int | None, item: int) -> Result:
        """Generate one item's choices. Raises RequestError. After the deadline nothing begins."""
        if self.is_cut:
            self.unfinished += len(prepared.samplings)
            completions = unstarted(prepared.samplings)
            return Result(
                prompt_text=prepared.prompt_text, prompt_tokens=len(prepared.prompt_ids), completions=completions
            )
        self.prompt_tokens += len(prepared.prompt_ids)
        choices = range(len(prepared.samplings))
        work = (self._generate(prepared, place or 0, item, choice) for choice in choices)
        completions = tuple(await gather_bounded(work, len(prepared.samplings)))
        self.items_done += place is None
        return Result(prompt_text=prepared.prompt_text, prompt_tokens=len(prepared.prompt_ids), completions=completions)

    async def _generate(self, prepared: Prepared, place: int, item: int, choice: int) -> Completion:
        assert self.attachment is not None, "a job comes first"
        waiter = self.attachment.generate(self._service, prepared, place, item, choice)
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
        return await self.in_writer(lambda: self._told(waiter, sampling))

    def _told(self, waiter: Waiter, sampling: Sampling) -> Completion:
        """For a writer."""
        tokenizer, generation = self._service.tokenizer, waiter.generation
        output_ids = generation.sequence.output_ids[: waiter.tokens]
        is_cut = waiter.finish_reason == "deadline"
        text = tokenizer.decode(output_ids)
        scored = None
        if not is_cut:
            text = generation.text_before_stop(text)
        if sampling.logprobs is not None:
            scored = logprobs.of_text(
                tokenizer.vocabulary,
                output_ids,
                generation.sequence.logprobs[: waiter.tokens],
                is_stopped=not is_cut and generation.end == "stop",
                characters=None if is_cut or generation.stop_chars is None else len(text),
            )
        return Completion(
            text=text,
            token_ids=tuple(output_ids),
            finish_reason=waiter.finish_reason,
            seed=seed_of(sampling),
            logprobs=scored,
        )

    def counts(self) -> dict[str, object]:
        counts: dict[str, object] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.done_tokens,
            "deadline": "cut" if self.is_cut and self.unfinished else "met",
            "unfinished": self.unfinished,
        }
        if self.attachment is not None:
            counts |= {"job": self.attachment.job.label, "resumed_tokens": self.resumed_tokens}
        return counts

    def close(self) -> None:
        """Free whatever is still queued or running."""
        self._clock.cancel()
        self._service.progress.close(self.snapshot)
        waiters, self._waiters = self._waiters, set()
        if self.attachment is None:
            return
        for waiter in waiters:
            self.attachment.leave(waiter)
        if self.unfinished:
            self._service.jobs.save_soon(self.attachment)


def _size(tokens: int, sampling: Sampling) -> int:
    """About what they take in an answer."""
    scored = 0 if sampling.logprobs is None else 1 + sampling.logprobs
    return tokens * (_BYTES_PER_TOKEN + _BYTES_PER_LOGPROB * scored)


async def _in_thread(threads: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    context = contextvars.copy_context()  # log lines from there carry the invocation's id, too
    work = partial(context.run, _without_panics, function)
    return await asyncio.get_running_loop().run_in_executor(threads, work)


def _without_panics(function: Callable[[], T]) -> T:
    """A panic of native code is no Exception to Python, and its words may quote a prompt."""
    try:
        return function()
    except Exception:
        raise
    except BaseException as panic:
        name = type(panic).__name__
    raise RuntimeError(f"{name} in native code")


async def gather_bounded(work: Iterable[Coroutine[Any, Any, T]], limit: int) -> list[T]:
    """Results in order, at most `limit` at work at once. The first error ends the others and is raised."""
    room = asyncio.Semaphore(limit)
    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            await room.acquire()
            for one in work:
                task = group.create_task(one)
                task.add_done_callback(lambda _: room.release())
                tasks.append(task)
                await room.acquire()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
