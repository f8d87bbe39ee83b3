"""The sequences that may have killed engines. They are found by their ids; no process is known here."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from container.engine.sequence import Sequence

ISOLATED_TOKENS = 3
"""One token more than can be on its way when an engine dies: a sequence that has so many is past the place of death."""
_MIN_DEATHS = 2


@dataclass(frozen=True, slots=True)
class _Deaths:
    """Deaths in a row with a sequence at one place, and the tokens that it had at the last one."""

    count: int
    tokens: int


class Suspects:
    """Owns the suspicion against sequences, and the order in which they are isolated.

    A sequence that kills engines never gets past one place. So a suspect is one that was in two engines that died and
    got no further in the second. Each is isolated, which means that an engine runs it alone: its next
    `ISOLATED_TOKENS` tokens clear it, which costs little beside a whole sequence; if the engine dies, it is the cause.
    Meanwhile all others wait, so that neither another sequence nor the load can be what kills the engine.
    """

    def __init__(self) -> None:
        self.ids: dict[int, None] = {}  # an ordered set
        """Suspects that are not cleared yet, the oldest suspicion first."""
        self.isolated: int | None = None
        """Id of the one that the present engine runs alone."""
        self._deaths: dict[int, _Deaths] = {}

    def isolate_next(self, unfinished: Mapping[int, Sequence]) -> Sequence | None:
        """Choose the suspect to run alone and return it; None if there are none left."""
        for id in [id for id in self.ids if id not in unfinished]:
            self.drop(id)
        self.isolated = next(iter(self.ids), None)
        return None if self.isolated is None else unfinished[self.isolated]

    def find_cause(self, in_engine: Set[int], unfinished: Mapping[int, Sequence]) -> Sequence | None:
        """Return the sequence that killed an engine, if it was isolated there. Otherwise, note those that may have."""
        if self.isolated is not None:
            self.drop(self.isolated)
            return unfinished.get(self.isolated)
        if in_engine:
            before, self._deaths = self._deaths, {}
            for id in sorted(in_engine & unfinished.keys()):
                tokens, last = len(unfinished[id].output_ids), before.get(id, _Deaths(0, 0))
                count = last.count + 1 if tokens < last.tokens + ISOLATED_TOKENS else 1
                self._deaths[id] = _Deaths(count, tokens)
                if count >= _MIN_DEATHS:
                    self.ids[id] = None
        return None

    def drop(self, sequence_id: int) -> None:
        """Forget a sequence that is cleared, was found to be the cause, or has ended otherwise."""
        self.ids.pop(sequence_id, None)
        self._deaths.pop(sequence_id, None)
