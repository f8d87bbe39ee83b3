from __future__ import annotations

import pytest

from container.jobs.pending_entries import PendingEntries
from container.journal.segment import SHARED, Record, SlotClosed, pack

SLOT = 7


def record(slot: int, start: int = 0) -> Record:
    return Record(slot, 0, 0, 0, prompt_crc=1, start=start, token_ids=pack([1, 2]))


class Pending(PendingEntries):
    """Entries that are written at will, and the bytes that they are counted with."""

    def __init__(self) -> None:
        self.bytes = 0
        super().__init__(self._count)

    def _count(self, size: int) -> None:
        self.bytes += size

    def written(self) -> list[object]:
        self.hand_over()
        entries = list(self.handed_over)
        self.confirm()
        return entries


@pytest.fixture
def pending() -> Pending:
    return Pending()


def test_entries_set_aside_are_not_written(pending: Pending) -> None:
    pending.add(record(SLOT))
    pending.add(record(SHARED))
    pending.set_aside(SLOT)
    pending.add(record(SLOT, start=2))
    assert pending.written() == [record(SHARED)]
    assert not pending and pending.bytes == 0
    assert pending.all() == [record(SLOT), record(SLOT, start=2)]


def test_entries_put_back_are_written(pending: Pending) -> None:
    pending.add(record(SLOT))
    pending.set_aside(SLOT)
    pending.put_all_back()
    assert pending.bytes > 0
    assert pending.written() == [record(SLOT)]


def test_unwritten_slot_closes_without_entry(pending: Pending) -> None:
    pending.add(record(SLOT))
    pending.set_aside(SLOT)
    pending.close(SLOT)
    pending.put_back(SLOT)
    assert pending.written() == [] and pending.bytes == 0


def test_written_slot_is_closed_once(pending: Pending) -> None:
    pending.add(record(SLOT))
    assert not pending.is_open(SLOT)
    assert pending.written() == [record(SLOT)] and pending.is_open(SLOT)
    pending.add(record(SLOT, start=2))
    pending.close(SLOT)
    pending.close(SLOT)
    assert pending.written() == [SlotClosed(SLOT)] and not pending.is_open(SLOT)


def test_written_slot_is_not_set_aside(pending: Pending) -> None:
    pending.add(record(SLOT))
    pending.hand_over()
    pending.set_aside(SLOT)
    pending.add(record(SLOT, start=2))
    assert pending.written() == [record(SLOT), record(SLOT, start=2)]


def test_adopted_slot_is_closed(pending: Pending) -> None:
    pending.adopt({SLOT})
    pending.close(SLOT)
    assert pending.written() == [SlotClosed(SLOT)]


def test_answer_is_marked_once_per_record(pending: Pending) -> None:
    pending.mark_answered()
    assert not pending
    pending.add(record(SHARED))
    pending.mark_answered()
    pending.mark_answered()
    assert pending.written() == [record(SHARED), SlotClosed(SHARED)]
    pending.mark_answered()
    assert not pending
    pending.add(record(SHARED, start=2))
    assert pending.written() == [record(SHARED, start=2)]
    pending.mark_answered()
    assert pending.written() == [SlotClosed(SHARED)]


def test_random_entries_dropped_leave_no_slot(pending: Pending) -> None:
    pending.add(record(SLOT))
    pending.add(record(SHARED))
    pending.hand_over()
    pending.drop_random()
    pending.close(SLOT)
    assert pending.written() == [record(SHARED)] and pending.bytes == 0
