"""An invocation: the work of one request, from items to results, and everything that must be freed with it."""

from __future__ import annotations

import asyncio
import contextvars
import time
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from . import logprobs
from .admission import Admission
from .deadline import Deadline
from .engine import sequence as engine
from .engine.messages import EngineInfo
from .engine.sequence import EngineError, Sampling
from .errors import DeadlineExceeded, EngineFailure, RequestError, SequenceFailure, Unavailable
from .generation import Completion, FinishReason, Result, TokenLogprob
from .preparation import Prepared, Preparer, seed_of, unstarted
from .reader.client import Reader, Readers
from .stop_strings import StopStrings
from .telemetry import Metrics
from .tokenizer import Tokenizer

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
    metrics: Metrics
    workers: ThreadPoolExecutor
    """Parses and tokenizes, so that the event loop never waits for a large document."""
    writers: ThreadPoolExecutor
    """Writes answers: at a deadline nobody has the time to wait behind documents that are read."""
    name: str
    """The served model's."""


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
    """Owns the sequences of one request; `close` frees them, however the request ended."""

    def __init__(self, service: Service, deadline: Deadline) -> None:
        self._service = service
        self._deadline = deadline
        self._generations: set[Generation] = set()
        self._limits: set[asyncio.Timeout] = set()
        self._answer_bytes = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.unfinished = 0
        """Texts that the deadline cut or never let begin, and lines of a batch that were not even read."""
        self.body_bytes = 0
        self.items = 0
        """As far as they are known: they, too, tell how long the answer takes."""
        self.is_cut = False
        """The deadline has come: nothing is generated any more. Any thread may ask."""
        self._clock = asyncio.get_running_loop().call_soon(self._look_at_clock)

    def _look_at_clock(self) -> None:
        """Once a second, because an answer that grows needs more time."""
        left_s = self._deadline.left_s(size=self.body_bytes + self._bytes_of_answer(), items=self.items)
        if left_s > 0:
            self._clock = asyncio.get_running_loop().call_later(min(left_s, 1.0), self._look_at_clock)
        else:
            self._cut()

    def _bytes_of_answer(self) -> int:
        running = (_size(len(one.sequence.output_ids), one.sequence.sampling) for one in self._generations)
        return self._answer_bytes + sum(running)

    def _cut(self) -> None:
        self.is_cut = True
        for generation in self._generations:
            generation.cut()
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time())

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

    async def in_worker(self, function: Callable[[], T]) -> T:
        return await _in_thread(self._service.workers, function)

    async def in_writer(self, function: Callable[[], T]) -> T:
        return await _in_thread(self._service.writers, function)

    @property
    def work_ahead(self) -> int:
        """How many items to have under way: enough that the engine never waits for one."""
        return _AHEAD * self._service.info.max_running

    async def run_all(self, prepared: Sequence[Prepared]) -> list[Result]:
        """Results in the items' order. If one fails, the others are ended and its error is raised.

        DeadlineExceeded where it leaves nothing worth to be shown.
        """
        results = await gather_bounded((self.run(one) for one in prepared), self.work_ahead)
        tally = Tally()
        for result in results:
            tally.add(result)
        self._judge(tally)
        return results

    def _judge(self, tally: Tally) -> None:
        if tally.has_unfinished and (not tally.has_tokens or self._deadline.on_deadline == "error"):
            raise self.exceeded()

    async def run_read(self, reader: Reader) -> None:
        """Every item of a large document, each result back to its reader. The first error ends the others.

        Of items that the deadline leaves no time for, the reader hears nothing. DeadlineExceeded as in `run_all`.
        """
        tally = Tally()
        work = (self._run_one_read(reader, index, tally) for index in range(reader.opened.items))
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

    async def _run_one_read(self, reader: Reader, index: int, tally: Tally) -> None:
        if self.is_cut:
            self.unfinished += 1
            tally.has_unfinished = True
            return
        item = await reader.item(index)
        ids = array("I", item.prompt_ids)
        prepared = Prepared(prompt_ids=ids, prompt_text="", samplings=item.samplings, stop=item.stop)
        result = await self.run(prepared)
        tally.add(result)
        await reader.put(index, result)

    async def run(self, prepared: Prepared) -> Result:
        """Generate one item's choices. Raises RequestError. After the deadline nothing begins."""
        if self.is_cut:
            self.unfinished += len(prepared.samplings)
            completions = unstarted(prepared.samplings)
            return Result(
                prompt_text=prepared.prompt_text, prompt_tokens=len(prepared.prompt_ids), completions=completions
            )
        self.prompt_tokens += len(prepared.prompt_ids)
        work = (self._generate(prepared, sampling) for sampling in prepared.samplings)
        completions = tuple(await gather_bounded(work, len(prepared.samplings)))
        return Result(prompt_text=prepared.prompt_text, prompt_tokens=len(prepared.prompt_ids), completions=completions)

    async def _generate(self, prepared: Prepared, sampling: Sampling) -> Completion:
        generation = Generation(self._service, self, prepared, sampling)
        self._generations.add(generation)
        if self.is_cut:  # since this item's first sampling began
            generation.cut()
        try:
            before_stop = await generation.done
        finally:
            self._generations.discard(generation)
            self._service.admission.withdraw(generation.sequence)
        generation.drop_late_tokens()
        output_ids = generation.sequence.output_ids
        self.completion_tokens += len(output_ids)
        self._answer_bytes += _size(len(output_ids), sampling)
        self.unfinished += generation.finish_reason == "deadline"
        text, scored = await self.in_writer(lambda: self._told(generation.sequence, before_stop))
        return Completion(
            text=text,
            token_ids=tuple(output_ids),
            finish_reason=generation.finish_reason,
            seed=seed_of(sampling),
            logprobs=scored,
        )

    def _told(self, sequence: engine.Sequence, before_stop: str | None) -> tuple[str, tuple[TokenLogprob, ...] | None]:
        """A sequence's text, which a stop string may already have cut, and its log probabilities. For a writer."""
        tokenizer = self._service.tokenizer
        text = tokenizer.decode(sequence.output_ids) if before_stop is None else before_stop
        if sequence.sampling.logprobs is None:
            return text, None
        characters = None if before_stop is None else len(before_stop)
        return text, logprobs.of_text(tokenizer.vocabulary, sequence, characters=characters)

    def counts(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "deadline": "cut" if self.is_cut and self.unfinished else "met",
            "unfinished": self.unfinished,
        }

    def close(self) -> None:
        """Free whatever is still queued or running."""
        self._clock.cancel()
        generations, self._generations = self._generations, set()
        for generation in generations:
            self._service.admission.withdraw(generation.sequence)


class Generation:
    """One sequence on its way. `done` gives the text if a stop string ended it, else None, or raises RequestError."""

    def __init__(self, service: Service, owner: Invocation, prepared: Prepared, sampling: Sampling) -> None:
        self.done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._metrics = service.metrics
        self._sampling = sampling
        self._stop = StopStrings(prepared.stop, service.tokenizer.decode) if prepared.stop else None
        self._stopped = self._was_cut = False
        self._tokens = 0  # when it ended
        self._last_token_at = time.monotonic()
        self.sequence = engine.Sequence(
            prepared.prompt_ids, sampling, owner=owner, on_tokens=self._on_tokens, on_error=self._on_error
        )
        service.admission.enqueue(self.sequence)

    @property
    def finish_reason(self) -> FinishReason:
        """A stop string is a `stop`, even where it is complete with the last token allowed."""
        if self._was_cut:
            return "deadline"
        reason = self.sequence.finish_reason
        assert self._stopped or reason is not None
        return "stop" if self._stopped or reason is None else reason

    def cut(self) -> None:
        """The deadline has come: the text so far is the text."""
        if not self.done.done():
            self._was_cut = True
            self._tokens = len(self.sequence.output_ids)
            self._metrics.sequences.labels(self.finish_reason).inc()
            self.done.set_result(None)

    def drop_late_tokens(self) -> None:
        """Stop strings and deadlines end a sequence here, of which the engine learns later: what comes meanwhile is
        not its."""
        del self.sequence.output_ids[self._tokens :]
        del self.sequence.logprobs[self._tokens :]

    def _on_tokens(self, new: int) -> None:
        if self.done.done():
            return
        self._measure(new)
        text = None
        # As in vLLM, stop strings don't count before min_new_tokens.
        if self._stop is not None and len(self.sequence.output_ids) > self._sampling.min_new_tokens:
            text = self._stop.find(self.sequence.output_ids)
        self._stopped = text is not None
        if self._stopped or self.sequence.finish_reason is not None:
            self._tokens = len(self.sequence.output_ids)
            self._metrics.sequences.labels(self.finish_reason).inc()
            self.done.set_result(text)

    def _measure(self, new: int) -> None:
        now = time.monotonic()
        since, self._last_token_at = now - self._last_token_at, now
        if len(self.sequence.output_ids) == new:
            self._metrics.time_to_first_token.observe(since)
            self._metrics.prompt_tokens.inc(len(self.sequence.prompt_ids))
        else:
            self._metrics.inter_token_latency.observe(since / new)
        self._metrics.generation_tokens.inc(new)

    def _on_error(self, error: EngineError) -> None:
        if not self.done.done():
            self._metrics.sequences.labels("error").inc()
            self.done.set_exception(_request_error(error))


def _size(tokens: int, sampling: Sampling) -> int:
    """About what they take in an answer."""
    scored = 0 if sampling.logprobs is None else 1 + sampling.logprobs
    return tokens * (_BYTES_PER_TOKEN + _BYTES_PER_LOGPROB * scored)


def _request_error(error: EngineError) -> RequestError:
    match error.code:
        case "engine_stopped":
            return Unavailable(str(error), code="shutting_down")
        case "sequence_failed" | "engine_killed_by_item":
            return SequenceFailure(str(error), code=error.code)
    return EngineFailure(str(error))


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
