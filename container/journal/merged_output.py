"""The rules by which records are merged into one output. They know no files.

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
    token_ids: bytes
    logprobs: list[TokenLogprobs]
    """One for each token if the request asks for them, else none."""
    end: End | None
    stop_chars: int | None

    @property
    def tokens(self) -> int:
        return len(self.token_ids) // 4


def merge(output: MergedOutput | None, record: Record) -> MergedOutput | None:
    """Return the output with a newer record.

    None if the record adds nothing: it would leave a gap, the output has ended, or it has all of the record.
    """
    if output is None or output.prompt_crc != record.prompt_crc:
        if record.start:
            return None
        token_ids, logprobs = record.token_ids, record.logprobs
    else:
        if output.end is not None or record.start > output.tokens:
            return None
        if record.start and record.tokens and bool(record.logprobs) != bool(output.logprobs):
            return None  # a part of the output would lack them
        token_ids = output.token_ids[: 4 * record.start] + record.token_ids
        if record.end is None and output.token_ids.startswith(token_ids):
            return None
        logprobs = output.logprobs[: record.start] + record.logprobs
    return MergedOutput(
        prompt_crc=record.prompt_crc,
        token_ids=token_ids,
        logprobs=logprobs,
        end=record.end,
        stop_chars=record.stop_chars,
    )
