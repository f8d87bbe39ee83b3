"""Slots tell a job's requests apart where outputs have random seeds, and are therefore not the same for all.

Greedy and seeded outputs are the same for all requests: they belong to SHARED. A job with a name has one more slot,
NAMED, for outputs with random seeds. Without a name each request has a slot of its own for them, until its answer has
arrived.
"""

from __future__ import annotations

from collections.abc import Set

SHARED = 0
NAMED = 1


class Slots:
    """Numbers a nameless job's slots: a request gets the first that another one left unfinished, else a new one."""

    def __init__(self) -> None:
        self._left: set[int] = set()
        self._next = SHARED + 1

    def __len__(self) -> int:
        """Slots left unfinished."""
        return len(self._left)

    def take(self) -> int:
        if self._left:
            slot = min(self._left)
            self._left.remove(slot)
            return slot
        self._next += 1
        return self._next - 1

    def leave(self, slot: int) -> None:
        """Leave the slot unfinished, for a later request."""
        self._left.add(slot)

    def adopt(self, begun: Set[int], closed: Set[int]) -> None:
        """Take over the slots that earlier servers began and closed."""
        known = (begun | closed) - {SHARED}
        self._left |= {slot for slot in known - closed if slot >= self._next}
        self._next = max(self._next, *(slot + 1 for slot in known)) if known else self._next
