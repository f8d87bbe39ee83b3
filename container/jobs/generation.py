"""A generation: one choice of one item on its way to its last token, and those who wait for it.

It belongs to a job, so that it can be shared by the requests that ask for the same, and outlive any of them.
"""

from __future__ import annotations

import asyncio
import copy
import time
import zlib
from collections.abc import Callable, Hashable

from container.core import Completion, FinishReason
from container.engine import sequence as engine
from container.engine.sequence import EngineError
from container.errors import EngineFailure, RequestError, SequenceFailure, Unavailable
from container.jobs.generator import Generator
from container.journal.merged_output import MergedOutput
from container.journal.segment import End, GenerationKey, Record, unpack
from container.tokenization.logprobs import token_logprobs
from container.tokenization.output_text import OutputText
from container.tokenization.preparer import Prepared


class Generation:
    """Owns a sequence, and knows why it ended: `end`, or `error`.

    Given a `saved` output from the journal, it continues behind that, or has ended already. The sequence gets to the
    engine by `start`. When it ends by itself, `on_end` gets it with its last record, before those who wait hear of it.
    """

    def __init__(
        self,
        key: GenerationKey,
        prepared: Prepared,
        generator: Generator,
        *,
        owner: Hashable,
        on_end: Callable[[Generation, Record | None], None],
        saved: MergedOutput | None = None,
    ) -> None:
        self.key = key
        self.has_ended = False
        self.end: End | None = None
        self.error: RequestError | None = None
        self.tokens = 0
        """Output tokens up to the end; those that the engine still sends after it are not counted."""
        self.stop_chars: int | None = None
        """Characters of the text before the stop string that ended it."""
        self.waiters: set[Waiter] = set()
        self.resumed_tokens = 0
        """Tokens that came from the journal."""
        self.has_changed_prompt = False
        """True if the journal has it with another prompt: then it is generated anew."""
        self.recorded_tokens = 0
        """Tokens that records were made of."""
        self.generator = generator
        self.sampling = prepared.samplings[key.choice]
        self.text = OutputText(generator.tokenizer, prepared, min_new_tokens=self.sampling.min_new_tokens)
        self._prompt_crc = zlib.crc32(repr(self.sampling.seed).encode(), zlib.crc32(prepared.prompt_ids.tobytes()))
        self._on_end = on_end
        self._is_started = False
        self._last_token_at = time.monotonic()
        self.sequence = engine.Sequence(
            prepared.prompt_ids, self.sampling, owner=owner, on_tokens=self._on_tokens, on_error=self._on_error
        )
        if saved is not None:
            self.has_changed_prompt = saved.prompt_crc != self._prompt_crc
            if not self.has_changed_prompt:
                self._resume(saved)

    def _resume(self, saved: MergedOutput) -> None:
        self.sequence.output_ids = unpack(saved.token_ids)
        self.sequence.logprobs = list(saved.logprobs)
        self.resumed_tokens = self.recorded_tokens = self.tokens = len(self.sequence.output_ids)
        self.end, self.stop_chars = saved.end, saved.stop_chars
        if self.end is None and self.tokens >= self.sampling.max_new_tokens:
            self.end = "length"  # more room was left for it when it was begun
        self.has_ended = self.end is not None

    def start(self) -> None:
        self._is_started = True
        self.generator.admission.enqueue(self.sequence)

    def withdraw(self) -> None:
        """Stop it where no invocation waits any more. A new generation can continue behind its tokens."""
        if self._is_started and not self.has_ended:
            self.generator.admission.withdraw(self.sequence)

    def new_record(self) -> Record | None:
        """Return a record of the tokens since the last one, and of the end; None if there is nothing new."""
        first = self.recorded_tokens
        last = self.tokens if self.has_ended else len(self.sequence.output_ids)
        if last <= first and self.end is None:
            return None
        self.recorded_tokens = last
        sequence = self.sequence
        token_ids, logprobs = sequence.output_ids[first:last], sequence.logprobs[first:last]
        return Record.of(self.key, self._prompt_crc, first, token_ids, logprobs, self.end, self.stop_chars)

    def _on_tokens(self, new: int) -> None:
        if self.has_ended:
            return
        sequence, metrics, now = self.sequence, self.generator.metrics, time.monotonic()
        since, self._last_token_at = now - self._last_token_at, now
        if len(sequence.output_ids) - self.resumed_tokens == new:
            metrics.time_to_first_token.observe(since)
            metrics.prompt_tokens.inc(len(sequence.prompt_ids))
        else:
            metrics.inter_token_latency.observe(since / new)
        metrics.generation_tokens.inc(new)
        stop_chars = self.text.find_stop(sequence.output_ids)
        if stop_chars is not None:
            self.stop_chars = stop_chars
            self.end = "stop_string"
            if sequence.finish_reason is None:  # the engine doesn't know
                self.generator.admission.withdraw(sequence)
        elif sequence.finish_reason is not None:
            self.end = sequence.finish_reason
        else:
            return
        self._finish("length" if self.end == "length" else "stop")

    def _on_error(self, error: EngineError) -> None:
        if self.has_ended:
            return
        match error.code:
            case "engine_stopped":
                self.error = Unavailable(str(error), code="shutting_down")
            case "sequence_failed" | "engine_killed_by_item":
                self.error = SequenceFailure(str(error), code=error.code)
            case _:
                self.error = EngineFailure(str(error))
        self._finish("error")

    def _finish(self, outcome: str) -> None:
        self.tokens = len(self.sequence.output_ids)
        self.has_ended = True
        self.generator.metrics.sequences.labels(outcome).inc()
        try:
            self._on_end(self, self.new_record())
        finally:  # a journal that fails must not keep them waiting
            waiters, self.waiters = self.waiters, set()
            for waiter in waiters:
                waiter.settle()


class Waiter:
    """An invocation's wait for a generation. `done` comes when that ends or `cut` is called; it raises RequestError."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.finish_reason: FinishReason = "deadline"
        self.tokens = 0
        """Output tokens that are this invocation's: the generation may go on for others."""
        if generation.has_ended:
            self.settle()
        else:
            generation.waiters.add(self)

    def settle(self) -> None:
        """Take over the generation's end."""
        generation = self.generation
        if self.done.done():
            return
        if generation.error is not None:
            # A copy: each raise adds to an exception's traceback, which would keep all who wait in memory.
            self.done.set_exception(copy.copy(generation.error))
            return
        # A stop string is a `stop`, even where it is complete with the last token allowed.
        self.finish_reason = "length" if generation.end == "length" else "stop"
        self.tokens = generation.tokens
        self.done.set_result(None)

    def cut(self) -> None:
        """End the wait at the deadline, with the text so far."""
        if not self.done.done():
            self.generation.waiters.discard(self)
            self.tokens = len(self.generation.sequence.output_ids)
            self.done.set_result(None)

    def completion(self) -> Completion:
        """Decode the output. It takes as long as the text: for a worker thread."""
        generation, is_cut = self.generation, self.finish_reason == "deadline"
        output_ids = generation.sequence.output_ids[: self.tokens]
        stop_chars = None if is_cut else generation.stop_chars
        is_stopped = not is_cut and generation.end == "stop"
        finished = generation.text.finish(output_ids, is_stopped=is_stopped, stop_chars=stop_chars)
        sampling, scored = generation.sampling, None
        if sampling.logprobs is not None:
            scored = token_logprobs(
                generation.text.vocabulary,
                output_ids[: finished.tokens],
                generation.sequence.logprobs[: finished.tokens],
                characters=None if stop_chars is None else len(finished.text),
            )
        return Completion(
            text=finished.text,
            token_ids=tuple(output_ids),
            finish_reason=self.finish_reason,
            stop=finished.stop,
            seed=sampling.seed if sampling.temperature > 0 else None,
            logprobs=scored,
        )
