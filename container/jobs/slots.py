"""Slots: which of a job's requests an item with a drawn seed belongs to, as it has no equal.

SHARED is of items that have one right output, greedy and seeded ones. A job with a name has one more, NAMED, for those
whose seeds are drawn; without a name each request has a slot of its own for them, until its answer has arrived.
"""

from __future__ import annotations

from collections.abc import Set

SHARED = 0
NAMED = 1


class Slots:
    """Owns the numbers of a nameless job's slots: a request takes the first that another has left unfinished."""

    def __init__(self) -> None:
        self._left: set[int] = set()
        self._next = SHARED + 1

    def take(self) -> int:
        if self._left:
            slot = min(self._left)
            self._left.remove(slot)
            return slot
        self._next += 1
        return self._next - 1

    def leave(self, slot: int) -> None:
        """Unfinished."""
        self._left.add(slot)

    def adopt(self, begun: Set[int], closed: Set[int]) -> None:
        """Of those who had the job before."""
        known = (begun | closed) - {SHARED}
        self._left |= {slot for slot in known - closed if slot >= self._next}
        self._next = max(self._next, *(slot + 1 for slot in known)) if known else self._next
