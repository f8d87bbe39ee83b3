"""A generation: one choice of one item on its way to its last token, and those who wait for it.

It belongs to a job, so that it can be shared by the requests that ask for the same, and outlive any of them.
"""

from __future__ import annotations

import asyncio
import copy
import time
import zlib
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from container.core import FinishReason
from container.engine import sequence as engine
from container.engine.sequence import EngineError
from container.errors import EngineFailure, RequestError, SequenceFailure, Unavailable
from container.journal.segment import End, GenerationKey, Record, packed
from container.tokenization.preparer import Prepared
from container.tokenization.stop_strings import UNFINISHED, StopStrings

if TYPE_CHECKING:
    from container.invocations.service import Service
    from container.journal.output_table import Saved
    from container.tokenization.tokenizer import Tokenizer


class Generation:
    """Owns a sequence, and knows why it ended: `end`, or `error`. Of one that ends while some wait, `on_end` is told.

    With `saved`, from the journal, it goes on behind those tokens, or has ended already. It gets to the engine by
    `start`. `kept_tokens` counts the tokens that records were made of.
    """

    def __init__(
        self,
        key: GenerationKey,
        prepared: Prepared,
        *,
        service: Service,
        owner: Hashable,
        saved: Saved | None = None,
        on_end: Callable[[Generation], None] = lambda generation: None,
    ) -> None:
        self.key = key
        self.end: End | None = None
        self.error: RequestError | None = None
        self.tokens = 0
        """That are its own, once it has ended: those that the engine sends until it has heard of the end are not."""
        self.stop_chars: int | None = None
        """Characters of the text before the stop string that ended it."""
        self.waiting: set[Waiter] = set()
        self.resumed_tokens = self.kept_tokens = 0
        self._service = service
        self._sampling = prepared.samplings[key.choice]
        self._stop = _stop_strings(prepared, self._sampling, service.tokenizer) if prepared.stop else None
        self._prompt_crc = zlib.crc32(repr(self._sampling.seed).encode(), zlib.crc32(prepared.prompt_ids.tobytes()))
        self._on_end = on_end
        self._is_started = False
        self._last_token_at = time.monotonic()
        self.sequence = engine.Sequence(
            prepared.prompt_ids, self._sampling, owner=owner, on_tokens=self._on_tokens, on_error=self._on_error
        )
        if saved is not None and saved.prompt_crc == self._prompt_crc:
            self._resume(saved)

    def _resume(self, saved: Saved) -> None:
        self.sequence.output_ids = list(saved.token_ids)
        self.sequence.logprobs = list(saved.logprobs)
        self.resumed_tokens = self.kept_tokens = self.tokens = len(saved.token_ids)
        self.end, self.stop_chars = saved.end, saved.stop_chars
        if self.end is None and self.tokens >= self._sampling.max_new_tokens:
            self.end = "length"  # more room was left for it when it was begun

    @property
    def has_ended(self) -> bool:
        return self.end is not None or self.error is not None

    @property
    def finish_reason(self) -> FinishReason:
        """A stop string is a `stop`, even where it is complete with the last token allowed."""
        return "length" if self.end == "length" else "stop"

    def start(self) -> None:
        self._is_started = True
        self._service.admission.enqueue(self.sequence)

    def withdraw(self) -> None:
        """Nobody waits any more. It says nothing afterwards; a new generation can go on where it was."""
        if self._is_started and not self.has_ended:
            self._service.admission.withdraw(self.sequence)

    def new_record(self) -> Record | None:
        """What no record was made of yet: the tokens since the last one, and the end."""
        first, last = self.kept_tokens, self.tokens if self.has_ended else len(self.sequence.output_ids)
        if last <= first and self.end is None:
            return None
        self.kept_tokens = last
        return Record(
            *self.key,
            prompt_crc=self._prompt_crc,
            start=first,
            token_ids=packed(self.sequence.output_ids[first:last]),
            logprobs=self.sequence.logprobs[first:last],
            end=self.end,
            stop_chars=self.stop_chars,
        )

    def text_before_stop(self, decoded: str) -> str:
        """Of its whole output's text, what is before the stop string that ended it."""
        return decoded if self.stop_chars is None else decoded.rstrip(UNFINISHED)[: self.stop_chars]

    def _on_tokens(self, new: int) -> None:
        if self.has_ended:
            return
        self._measure(new)
        text = self._stop.find(self.sequence.output_ids) if self._stop is not None else None
        if text is not None:
            self.stop_chars = len(text)
            self._ended("stop_string")
        elif self.sequence.finish_reason is not None:
            self._ended(self.sequence.finish_reason)

    def _ended(self, end: End) -> None:
        self.tokens = len(self.sequence.output_ids)
        self.end = end
        self._service.metrics.sequences.labels(self.finish_reason).inc()
        if end == "stop_string" and self.sequence.finish_reason is None:
            self._service.admission.withdraw(self.sequence)  # the engine doesn't know
        self._tell()

    def _on_error(self, error: EngineError) -> None:
        if not self.has_ended:
            self.tokens = len(self.sequence.output_ids)
            self.error = _request_error(error)
            self._service.metrics.sequences.labels("error").inc()
            self._tell()

    def _tell(self) -> None:
        try:
            self._on_end(self)
        finally:
            waiting, self.waiting = self.waiting, set()
            for waiter in waiting:
                waiter.settle()

    def _measure(self, new: int) -> None:
        metrics = self._service.metrics
        now = time.monotonic()
        since, self._last_token_at = now - self._last_token_at, now
        if len(self.sequence.output_ids) - self.resumed_tokens == new:
            metrics.time_to_first_token.observe(since)
            metrics.prompt_tokens.inc(len(self.sequence.prompt_ids))
        else:
            metrics.inter_token_latency.observe(since / new)
        metrics.generation_tokens.inc(new)


class Waiter:
    """An invocation's wait for a generation. `done` comes when that ends or `cut` is called; it raises RequestError."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.finish_reason: FinishReason = "deadline"
        self.tokens = 0
        """Of the generation's that are this invocation's: the others may go on."""
        if generation.has_ended:
            self.settle()
        else:
            generation.waiting.add(self)

    def settle(self) -> None:
        """The generation has ended."""
        if self.done.done():
            return
        if self.generation.error is not None:
            # A copy: each raising adds to an exception's past, which holds on to who waits.
            self.done.set_exception(copy.copy(self.generation.error))
            return
        self.finish_reason, self.tokens = self.generation.finish_reason, self.generation.tokens
        self.done.set_result(None)

    def cut(self) -> None:
        """The deadline has come: the text so far is the text."""
        if not self.done.done():
            self.generation.waiting.discard(self)
            self.tokens = len(self.generation.sequence.output_ids)
            self.done.set_result(None)


def _stop_strings(prepared: Prepared, sampling: engine.Sampling, tokenizer: Tokenizer) -> StopStrings:
    return StopStrings(prepared.stop, tokenizer.decode, tokenizer.vocabulary.has_text, sampling.min_new_tokens)


def _request_error(error: EngineError) -> RequestError:
    match error.code:
        case "engine_stopped":
            return Unavailable(str(error), code="shutting_down")
        case "sequence_failed" | "engine_killed_by_item":
            return SequenceFailure(str(error), code=error.code)
    return EngineFailure(str(error))
