"""What records make of one sequence: the rules by which they are merged. Knows no files.

Records of one writer agree and follow each other. Records of two may overlap, and disagree where they do (ties in
bf16): then the newer writer's are taken from there on.
"""

from __future__ import annotations

import msgspec

from container.engine.sequence import TokenLogprobs
from container.journal.segment import End, Record


class MergedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """An output from its first token on. Once it has an `end` it is final."""

    prompt_crc: int
    token_ids: bytes = b""
    logprobs: list[TokenLogprobs] = []
    end: End | None = None
    stop_chars: int | None = None

    @property
    def tokens(self) -> int:
        return len(self.token_ids) // 4

    def then(self, record: Record) -> MergedOutput | None:
        """With a newer record. None if it adds nothing: a gap, an end that was there, or a part of what is known."""
        if record.prompt_crc != self.prompt_crc:
            return of(record)
        if self.end is not None or record.start > self.tokens:
            return None
        if record.start and record.tokens and bool(record.logprobs) != bool(self.logprobs):
            return None  # a part of the output would lack them
        longer = self.token_ids[: 4 * record.start] + record.token_ids
        if record.end is None and self.token_ids.startswith(longer):
            return None
        return MergedOutput(
            prompt_crc=self.prompt_crc,
            token_ids=longer,
            logprobs=self.logprobs[: record.start] + record.logprobs,
            end=record.end,
            stop_chars=record.stop_chars,
        )


def of(record: Record) -> MergedOutput | None:
    """A chain that begins with it. None if it is not a beginning."""
    if record.start:
        return None
    return MergedOutput(
        prompt_crc=record.prompt_crc,
        token_ids=record.token_ids,
        logprobs=record.logprobs,
        end=record.end,
        stop_chars=record.stop_chars,
    )


def better(old: MergedOutput | None, new: MergedOutput | None) -> MergedOutput | None:
    """Of what an older writer left and what a newer one did: as if `old` had been followed by all records of `new`."""
    if old is None or new is None:
        return new or old
    if old.prompt_crc != new.prompt_crc:
        return new
    if old.end is not None:
        return old
    return old if new.end is None and old.token_ids.startswith(new.token_ids) else new
