"""The reading half of a job's journal: which of its epochs and segments count, and what they hold.

    jobs/<job id>/<epoch>/claim, jobs/<job id>/<epoch>/head, jobs/<job id>/<epoch>/<number>

The highest epoch with a claim and an intact head is the journal. Its head says how many segments of each earlier epoch
count. An epoch without a claim counts nothing: it is about to begin, or was deleted.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from container.journal.output_table import OutputTable
from container.journal.segment import SHARED, CorruptFile, Head, Segment, SlotClosed, decode
from container.journal.stores.store import Store, StoreError

_READ_CONCURRENCY = 8
MAX_LOOKS = 100
"""Looks at a job while other servers delete epochs of it, before the store is not believed."""

_LOG = logging.getLogger(__name__)


class DigestConflict(Exception):
    """The job's name is known, with another request's digest."""


def folder_key(job_id: str, epoch: int | None = None) -> str:
    return f"jobs/{job_id}/" if epoch is None else f"jobs/{job_id}/{epoch:016d}/"


def head_key(job_id: str, epoch: int) -> str:
    return f"{folder_key(job_id, epoch)}head"


def claim_key(job_id: str, epoch: int) -> str:
    return f"{folder_key(job_id, epoch)}claim"


def segment_key(job_id: str, epoch: int, number: int) -> str:
    return f"{folder_key(job_id, epoch)}{number:08d}"


@dataclass(frozen=True, slots=True)
class Listing:
    """The segments' numbers of each epoch that has any object, and the claimed epochs that have a head."""

    numbers: dict[int, list[int]]
    heads: frozenset[int]

    @property
    def highest(self) -> int:
        return max(self.numbers, default=0)

    def last(self, epoch: int) -> int:
        return max(self.numbers.get(epoch, ()), default=0)


class JobReader:
    """Reads one job's journal, once: first `open`, then `read`. A JobLog takes the job as the reader saw it."""

    def __init__(
        self,
        store: Store,
        job_id: str,
        digest: str,
        *,
        lifetime_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.job_id = job_id
        self.digest = digest
        self.clock = clock
        self._lifetime_s = lifetime_s
        self.answers = 0
        """Answers received from the store: a large journal takes many."""
        self.listing = Listing({}, frozenset())
        self.head: Head | None = None
        """Head of the epoch that is the journal."""
        self.included: dict[int, int] = {}
        """Last segment that counts of each epoch that has one."""
        self.bytes = 0
        """Size of the intact segments that were read."""
        self.closed_slots: set[int] = set()
        """Slots whose answers have arrived. The shared one is among them until something is recorded there again."""

    def open(self) -> bytes | None:
        """Find the journal and return the job's secret; None if there is none, or it has expired.

        Raises DigestConflict, StoreError.
        """
        self.listing, head = self._look()
        if head is None:
            return None
        if self.clock() - head.created > self._lifetime_s:
            self.delete_epochs(self.listing.numbers)
            return None
        if head.digest != self.digest:
            raise DigestConflict
        self.head = head
        counted = (*head.included, (head.epoch, self.listing.last(head.epoch)))
        self.included = {epoch: last for epoch, last in counted if last}
        return head.secret

    @property
    def template_clock(self) -> float | None:
        """The Unix time that the journal's chat templates saw; None if there is no journal."""
        return None if self.head is None else self.head.clock or self.head.created

    def read(self, table: OutputTable | None = None) -> None:
        """Read all that counts into `table`. Raises StoreError, and OutOfSpace from `table`."""
        segments = [
            (epoch, number)
            for epoch, last in self.included.items()
            for number in sorted(self.listing.numbers.get(epoch, ()))
            if number <= last
        ]
        self.read_segments(segments, table)

    def list_objects(self) -> Listing:
        """List the job's objects."""
        prefix = folder_key(self.job_id)
        numbers: dict[int, list[int]] = {}
        heads, claims = set(), set()
        for key in self.store.keys(prefix):
            match = re.fullmatch(r"(\d{16,})/(claim|head|\d{8,})", key[len(prefix) :])
            if match:
                epoch = int(match[1])
                epoch_numbers = numbers.setdefault(epoch, [])
                if match[2] == "claim":
                    claims.add(epoch)
                elif match[2] == "head":
                    heads.add(epoch)
                else:
                    epoch_numbers.append(int(match[2]))
        self.answers += 1
        return Listing(numbers, frozenset(heads & claims))

    def read_head(self, epoch: int) -> Head | None:
        """Read the head of an epoch; None if it is not there or not intact."""
        data = self.store.get(head_key(self.job_id, epoch))
        if data is None:
            return None
        try:
            head = decode(Head, data)
            if head.epoch != epoch:
                raise CorruptFile(f"it is epoch {head.epoch}'s")
        except CorruptFile as error:
            _LOG.warning("the head of a job's epoch %d is dropped: %s", epoch, error)
            return None
        return head

    def read_segments(self, segments: list[tuple[int, int]], table: OutputTable | None) -> None:
        """Read segments, given as epochs and numbers, in order into `table`. Those that aren't intact are dropped."""
        dropped = 0
        for (_, number), data in self._fetch(segments):
            self.answers += 1
            try:
                segment = decode(Segment, data or b"")
                if segment.number != number:
                    raise CorruptFile(f"number {segment.number}")
            except CorruptFile:
                dropped += 1
                continue
            self.bytes += len(data or b"")
            for entry in segment.entries:
                if isinstance(entry, SlotClosed):
                    self.closed_slots.add(entry.slot)
                elif entry.slot == SHARED:
                    self.closed_slots.discard(SHARED)
            if table is not None:
                table.add(segment.entries)
        if dropped:
            _LOG.warning("%d of a job's %d segments are torn, changed or missing: dropped", dropped, len(segments))

    def delete_epochs(self, epochs: Iterable[int]) -> None:
        """Delete epochs, the newest last, as its head says what they are. A writer that comes now has a higher one."""
        for epoch in sorted(epochs):
            self.store.delete(folder_key(self.job_id, epoch))
            self.answers += 1

    def _look(self) -> tuple[Listing, Head | None]:
        """List the job's objects and read its head, again where a listed head was deleted meanwhile: then there is a
        higher one, which was not listed."""
        for _ in range(MAX_LOOKS):
            listing = self.list_objects()
            for epoch in sorted(listing.heads, reverse=True):
                if (head := self.read_head(epoch)) is not None:
                    return listing, head
                if not self.store.exists(head_key(self.job_id, epoch)):
                    break
            else:
                return listing, None
        raise StoreError(f"{self.store.describe}: the job's journal kept changing while it was being read")

    def _fetch(self, segments: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], bytes | None]]:
        """Fetch segments in order; a few at once where each is a round trip."""
        keys = [segment_key(self.job_id, *segment) for segment in segments]
        if self.store.is_local:
            yield from zip(segments, map(self.store.get, keys), strict=True)
            return
        with ThreadPoolExecutor(_READ_CONCURRENCY) as pool:
            for first in range(0, len(keys), _READ_CONCURRENCY):
                some = slice(first, first + _READ_CONCURRENCY)
                yield from zip(segments[some], pool.map(self.store.get, keys[some]), strict=True)
