"""An invocation: the work of one request, from items to results, and everything that must be freed with it."""

from __future__ import annotations

import asyncio
import contextvars
import time
from array import array
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from . import logprobs
from .admission import Admission
from .engine import sequence as engine
from .engine.messages import EngineInfo
from .engine.sequence import EngineError, Sampling
from .errors import EngineFailure, RequestError, SequenceFailure, Unavailable
from .generation import Completion, FinishReason, Result, TokenLogprob
from .preparation import Prepared, Preparer
from .reader.client import Reader, Readers
from .stop_strings import StopStrings
from .telemetry import Metrics
from .tokenizer import Tokenizer

T = TypeVar("T")
_AHEAD = 2


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
    """Parses, tokenizes and renders, so that the event loop never waits for a large document."""
    name: str
    """The served model's."""


class Invocation:
    """Owns the sequences of one request; `close` frees them, however the request ended."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sequences: set[engine.Sequence] = set()
        self.prompt_tokens = 0
        self.completion_tokens = 0

    async def in_worker(self, function: Callable[[], T]) -> T:
        context = contextvars.copy_context()  # log lines from there carry the invocation's id, too
        work = partial(context.run, _without_panics, function)
        return await asyncio.get_running_loop().run_in_executor(self._service.workers, work)

    @property
    def work_ahead(self) -> int:
        """How many items to have under way: enough that the engine never waits for one."""
        return _AHEAD * self._service.info.max_running

    async def run_all(self, prepared: Sequence[Prepared]) -> list[Result]:
        """Results in the items' order. If one fails, the others are ended and its error is raised."""
        return await gather_bounded((self.run(one) for one in prepared), self.work_ahead)

    async def run_read(self, reader: Reader) -> None:
        """Every item of a large document, each result back to its reader. The first error ends the others."""
        work = (self._run_one_read(reader, index) for index in range(reader.opened.items))
        running = asyncio.create_task(gather_bounded(work, self.work_ahead))
        checking = asyncio.create_task(reader.check())
        try:
            await asyncio.wait({running, checking}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await checking
            await running
        finally:
            running.cancel()
            checking.cancel()
            await asyncio.gather(running, checking, return_exceptions=True)

    async def _run_one_read(self, reader: Reader, index: int) -> None:
        item = await reader.item(index)
        ids = array("I", item.prompt_ids)
        prepared = Prepared(prompt_ids=ids, prompt_text="", samplings=item.samplings, stop=item.stop)
        await reader.put(index, await self.run(prepared))

    async def run(self, prepared: Prepared) -> Result:
        """Generate one item's choices. Raises RequestError."""
        self.prompt_tokens += len(prepared.prompt_ids)
        work = (self._generate(prepared, sampling) for sampling in prepared.samplings)
        completions = await gather_bounded(work, len(prepared.samplings))
        return Result(
            prompt_text=prepared.prompt_text,
            prompt_tokens=len(prepared.prompt_ids),
            completions=tuple(completions),
        )

    async def _generate(self, prepared: Prepared, sampling: Sampling) -> Completion:
        generation = Generation(self._service, self, prepared, sampling)
        self._sequences.add(generation.sequence)
        try:
            before_stop = await generation.done
        finally:
            self._sequences.discard(generation.sequence)
            self._service.admission.withdraw(generation.sequence)
        generation.drop_late_tokens()
        output_ids = generation.sequence.output_ids
        self.completion_tokens += len(output_ids)
        text, scored = await self.in_worker(lambda: self._told(generation.sequence, before_stop))
        return Completion(
            text=text,
            token_ids=tuple(output_ids),
            finish_reason=generation.finish_reason,
            seed=sampling.seed if sampling.temperature > 0 else None,
            logprobs=scored,
        )

    def _told(self, sequence: engine.Sequence, before_stop: str | None) -> tuple[str, tuple[TokenLogprob, ...] | None]:
        """A sequence's text, which a stop string may already have cut, and its log probabilities. For a worker."""
        tokenizer = self._service.tokenizer
        text = tokenizer.decode(sequence.output_ids) if before_stop is None else before_stop
        if sequence.sampling.logprobs is None:
            return text, None
        characters = None if before_stop is None else len(before_stop)
        return text, logprobs.of_text(tokenizer.vocabulary, sequence, characters=characters)

    def counts(self) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}

    def close(self) -> None:
        """Free whatever is still queued or running."""
        sequences, self._sequences = self._sequences, set()
        for sequence in sequences:
            self._service.admission.withdraw(sequence)


class Generation:
    """One sequence on its way. `done` gives the text if a stop string ended it, else None, or raises RequestError."""

    def __init__(self, service: Service, owner: Invocation, prepared: Prepared, sampling: Sampling) -> None:
        self.done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._metrics = service.metrics
        self._sampling = sampling
        self._stop = StopStrings(prepared.stop, service.tokenizer.decode) if prepared.stop else None
        self._stopped = False
        self._tokens = 0  # when it ended
        self._last_token_at = time.monotonic()
        self.sequence = engine.Sequence(
            prepared.prompt_ids, sampling, owner=owner, on_tokens=self._on_tokens, on_error=self._on_error
        )
        service.admission.enqueue(self.sequence)

    @property
    def finish_reason(self) -> FinishReason:
        """A stop string is a `stop`, even where it is complete with the last token allowed."""
        reason = self.sequence.finish_reason
        assert self._stopped or reason is not None
        return "stop" if self._stopped or reason is None else reason

    def drop_late_tokens(self) -> None:
        """A stop string ends a sequence here, of which the engine learns later: what comes meanwhile is not its."""
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


def _request_error(error: EngineError) -> RequestError:
    match error.code:
        case "engine_stopped":
            return Unavailable(str(error), code="shutting_down")
        case "sequence_failed" | "engine_killed_by_item":
            return SequenceFailure(str(error), code=error.code)
    return EngineFailure(str(error))


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
