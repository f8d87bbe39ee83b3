"""Which sequences may have killed engines. It knows no process: it is told who was in an engine that died."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from container.engine.sequence import Sequence

TRIAL_TOKENS = 3
"""One more than can be on their way when an engine dies: who gets so far has passed the place of its death."""
_DEATHS = 2


@dataclass(frozen=True, slots=True)
class _Death:
    """The last one of a sequence's: how many in a row it makes, and how many tokens the sequence had."""

    count: int
    tokens: int


class Suspects:
    """Owns what is held against sequences, and the order in which they are tried.

    A sequence that kills engines never gets past one place. So those are suspects that were in two engines that
    died, and got no further in the second. Each is tried alone: it is acquitted with its next `TRIAL_TOKENS`
    tokens, which costs little beside a whole sequence; if its engine dies, it is guilty. Meanwhile all others wait, so
    that neither another sequence nor the load can be what kills its engine.
    """

    def __init__(self) -> None:
        self._deaths: dict[int, _Death] = {}
        self._to_try: dict[int, None] = {}  # an ordered set

    def __len__(self) -> int:
        """Those not yet acquitted."""
        return len(self._to_try)

    @property
    def next(self) -> int | None:
        """The id of the one on trial, or to be tried."""
        return next(iter(self._to_try), None)

    def blame(self, in_engine: Collection[Sequence]) -> None:
        """An engine died with these in it."""
        before, self._deaths = self._deaths, {}
        for sequence in in_engine:
            tokens, last = len(sequence.output_ids), before.get(sequence.id)
            again = last is not None and tokens < last.tokens + TRIAL_TOKENS
            self._deaths[sequence.id] = death = _Death(last.count + 1 if last and again else 1, tokens)
            if death.count >= _DEATHS:
                self._to_try[sequence.id] = None

    def drop(self, sequence_id: int) -> None:
        """It is acquitted, guilty, or has ended otherwise."""
        self._to_try.pop(sequence_id, None)
        self._deaths.pop(sequence_id, None)
