"""The entries of a job that its journal doesn't have yet, and the slots of which it has some."""

from __future__ import annotations

from collections.abc import Callable

from container.journal.segment import SHARED, Entry, Record, SlotClosed


class PendingEntries:
    """Owns a job's entries while they wait to be written.

    A request that is answered before any of its slot is written leaves nothing in the journal: while its answer is on
    its way, the slot's entries are set aside.
    """

    def __init__(self, on_change: Callable[[int], None]) -> None:
        """`on_change` is told by how many bytes what waits has grown."""
        self._on_change = on_change
        self._unsaved: list[Entry] = []
        self._handed_over: list[Entry] = []
        """Entries that the log was given and has not confirmed yet, older than the unsaved ones."""
        self._set_aside: dict[int, list[Entry]] = {}
        self._open_slots: set[int] = set()
        """Slots of which the log has, or was given, outputs, and not that they are closed."""

    def __bool__(self) -> bool:
        """Whether anything is to be written."""
        return bool(self._unsaved or self._handed_over)

    def all(self) -> list[Entry]:
        """Return all entries that the journal doesn't have, in their order within each slot."""
        aside = [entry for entries in self._set_aside.values() for entry in entries]
        return [*self._handed_over, *self._unsaved, *aside]

    def adopt(self, open_slots: set[int]) -> None:
        """Take over the slots that earlier requests left open in the journal."""
        self._open_slots |= open_slots

    def add(self, entry: Entry) -> None:
        if entry.slot in self._set_aside:
            self._set_aside[entry.slot].append(entry)
            return
        self._unsaved.append(entry)
        self._on_change(_size(entry))

    def hand_over(self) -> None:
        """Give the log all that waits: from here on it may be in the journal."""
        for entry in self._unsaved:
            if isinstance(entry, Record):
                self._open_slots.add(entry.slot)
            else:
                self._open_slots.discard(entry.slot)
        self._handed_over, self._unsaved = self._handed_over + self._unsaved, []

    @property
    def handed_over(self) -> list[Entry]:
        return self._handed_over

    def confirm(self) -> None:
        """Forget what was handed over: it is durable."""
        self._on_change(-sum(map(_size, self._handed_over)))
        self._handed_over = []

    def drop_random(self) -> None:
        """Drop the outputs with random seeds, none of which is written."""
        entries = self._handed_over + self._unsaved
        self._on_change(-sum(_size(entry) for entry in entries if entry.slot != SHARED))
        self._handed_over = [entry for entry in self._handed_over if entry.slot == SHARED]
        self._unsaved = [entry for entry in self._unsaved if entry.slot == SHARED]
        self._set_aside.clear()
        self._open_slots &= {SHARED}

    def clear(self) -> None:
        """Forget everything: the job has no journal any more, or no part in its work."""
        self._on_change(-sum(map(_size, self._handed_over + self._unsaved)))
        self._unsaved, self._handed_over = [], []
        self._set_aside.clear()
        self._open_slots.clear()

    # Slots

    def is_open(self, slot: int) -> bool:
        """Whether the journal has, or may have, outputs of the slot, and not that it is closed."""
        return slot in self._open_slots

    def set_aside(self, slot: int) -> None:
        """Don't write the slot's entries for the time being, if none of them is written."""
        if not self.is_open(slot):
            self._set_aside[slot] = self._take_unsaved(slot)

    def put_back(self, slot: int) -> None:
        """Write the slot's entries after all."""
        for entry in self._set_aside.pop(slot, ()):
            self.add(entry)

    def put_all_back(self) -> None:
        for slot in list(self._set_aside):
            self.put_back(slot)

    def close(self, slot: int) -> None:
        """Drop what waits of a slot that is not used again, and let the journal know if it has any of it."""
        self._set_aside.pop(slot, None)
        self._take_unsaved(slot)
        if self.is_open(slot):
            self._open_slots.discard(slot)
            self.add(SlotClosed(slot))

    def mark_answered(self) -> None:
        """Let the journal know that a request was answered with what it has, or gets, of the shared slot."""
        last = next((entry for entry in reversed(self._unsaved) if entry.slot == SHARED), None)
        if isinstance(last, Record) or (last is None and self.is_open(SHARED)):
            self.add(SlotClosed(SHARED))

    def _take_unsaved(self, slot: int) -> list[Entry]:
        taken: list[Entry] = [entry for entry in self._unsaved if entry.slot == slot and isinstance(entry, Record)]
        self._unsaved = [entry for entry in self._unsaved if entry.slot != slot or isinstance(entry, SlotClosed)]
        self._on_change(-sum(map(_size, taken)))
        return taken


def _size(entry: Entry) -> int:
    """Return about how many bytes an entry takes in memory."""
    if isinstance(entry, SlotClosed):
        return 64
    scores = len(entry.logprobs) and sum(160 + 116 * len(score.top) for score in entry.logprobs)
    return 256 + len(entry.token_ids) + scores
