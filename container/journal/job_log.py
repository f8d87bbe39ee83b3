"""One job's journal in a store: heads and segments under epochs. Knows no tokens' meaning and no requests.

    jobs/<job id>/<epoch>/claim, jobs/<job id>/<epoch>/head, jobs/<job id>/<epoch>/<number>

A writer takes a job by the claim to a higher epoch: whoever writes looks for one after its segments, before it calls
them durable. What is there after the claim is therefore all that counts. The head of the new epoch says how much of
each earlier one that is; what an earlier writer adds later is ignored. The highest epoch with an intact head is the
journal. In a directory, epochs that count nothing are deleted in time.

A job may be deleted at any time, and be begun anew: a new epoch is also higher than the time in microseconds, by a
random part of a second, so that nothing that is written or deleted late meets what came after it. An epoch without its
claim counts nothing: it is about to begin, or was deleted, and what is put there late doesn't count either.

StoreError
└── JournalGone   the job's objects were deleted by somebody else
DigestConflict    the job is of another request
EpochLost         another writer has taken the job
JournalFull       the job is over its limit
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from container.journal.output_table import OutputTable
from container.journal.segment import (
    CorruptFile,
    Entry,
    Head,
    Segment,
    SlotClosed,
    encoded,
    opened,
    sealed_head,
    sealed_segment,
)
from container.journal.stores.store import Store, StoreError

_SEGMENT_BYTES = 8 << 20
"""About the most that one object holds: it is read as a whole."""
_READ_AT_ONCE = 8
_MOST_NUMBERS_TAKEN = 100
"""Numbers tried before a store that says all exist is not believed."""
_MOST_SPENT = 8
"""Epochs that count nothing, until they are deleted. Each look at a job goes through all of them, and one that was
finished long ago gets a new one each time it is asked for."""
_MOST_LOOKS = 100
"""At a job of which others delete epochs, before the store is not believed."""

_EPOCHS_A_SECOND = 1_000_000

_EPOCH = re.compile(r"\d{16,}")

_LOG = logging.getLogger(__name__)


class DigestConflict(Exception):
    """The job's name is known, with another digest."""


class EpochLost(Exception):
    """Another writer has taken the job. This one writes no more."""


class JournalFull(Exception):
    """The job's journal would be over its limit."""


class JournalGone(StoreError):
    """The job's objects are gone: another one's sweep, or an operator. Open, take and append all again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`created`: Unix seconds. `segments` and `bytes`: those that count and are intact."""

    secret: bytes
    created: float
    segments: int
    bytes: int


def job_id(name: str | None, digest: str) -> str:
    """Of a named job, or of one known by its digest alone. Fit for a key, and tells nothing of the name."""
    return hashlib.sha256((f"digest:{digest}" if name is None else f"name:{name}").encode()).hexdigest()


def head_key(job_id: str, epoch: int) -> str:
    return f"jobs/{job_id}/{epoch:016d}/head"


def claim_key(job_id: str, epoch: int) -> str:
    return f"jobs/{job_id}/{epoch:016d}/claim"


def segment_key(job_id: str, epoch: int, number: int) -> str:
    return f"jobs/{job_id}/{epoch:016d}/{number:08d}"


@dataclass(frozen=True, slots=True)
class _Listing:
    """The numbers of the segments of every epoch of which anything is there, and the claimed ones that have a head."""

    numbers: dict[int, list[int]]
    heads: frozenset[int]

    @property
    def highest(self) -> int:
        return max(self.numbers, default=0)

    def last(self, epoch: int) -> int:
        return max(self.numbers.get(epoch, ()), default=0)


class JobLog:
    """Owns which epoch and which number comes next. One caller at a time.

    `open`, then `take`, then `append`. After EpochLost or JournalGone it starts again with `open`.
    """

    def __init__(
        self,
        store: Store,
        job_id: str,
        digest: str,
        *,
        writer: str,
        lifetime_s: float,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._job_id = job_id
        self._digest = digest
        self._writer = f"{writer}-{secrets.token_hex(8)}"  # one's own head is known again by it
        self._lifetime_s = lifetime_s
        self._max_bytes = max_bytes
        self._clock = clock
        self.forget()

    @property
    def epoch(self) -> int:
        """That is this writer's; 0: none."""
        return self._epoch

    def forget(self) -> None:
        """What it knows of the store, and what it has written and not checked."""
        self._seen = _Listing({}, frozenset())
        self._former: Head | None = None  # of the epoch that is taken over
        self._takes: dict[int, int] = {}  # the last number that counts of each epoch of which one does
        self._created: float | None = None
        self._claimed = 0  # epoch of which this writer's claim may be there
        self._epoch = 0
        self._last = 0  # number that may exist in it
        self._unchecked: list[Entry] = []  # written, and not known to count
        self._unchecked_bytes = 0
        self.bytes = 0
        self.closed_slots: set[int] = set()  # that were read

    def open(self, table: OutputTable | None = None, on_answer: Callable[[], None] = lambda: None) -> Found | None:
        """What the journal holds; its records go to `table`. None if there is none, or it has expired.

        `on_answer` is called after each answer of the store: of a large journal there are many.
        Raises DigestConflict, StoreError, OutOfSpace (of `table`).
        """
        self.forget()
        self._seen, head = self._look(on_answer)
        if head is None:
            return None
        if self._clock() - head.created > self._lifetime_s:
            self._delete_epochs(self._seen.numbers, on_answer)
            return None
        if head.digest != self._digest:
            raise DigestConflict
        self._former, self._created = head, head.created
        counted = (*head.takes, (head.epoch, self._seen.last(head.epoch)))
        self._takes = {epoch: last for epoch, last in counted if last}
        return self._read(head, table, on_answer)

    def take(self, secret: bytes, table: OutputTable | None = None) -> None:
        """Makes the job this writer's, with what `open` saw of it and what its former writer has added since.

        That goes to `table`. Raises EpochLost if another took it since, began it anew or deleted it, and StoreError,
        after which it may be called again.
        """
        if self._created is None:
            self._created = self._clock()
        if not self._claimed:
            lowest = max(self._seen.highest, int(self._clock() * _EPOCHS_A_SECOND)) + 1
            self._claimed = lowest + secrets.randbelow(_EPOCHS_A_SECOND)
        epoch = self._claimed
        # From here on the former writer is told that it has lost the job.
        self._create_own(claim_key(self._job_id, epoch), self._writer.encode())
        self._catch_up(epoch, table)
        head = Head(
            digest=self._digest,
            secret=secret,
            epoch=epoch,
            created=self._created,
            writer=self._writer,
            takes=list(self._takes.items()),
        )
        self._create_own(head_key(self._job_id, epoch), sealed_head(head))
        self._epoch, self._last = epoch, 0
        self._delete_spent()

    def _create_own(self, key: str, data: bytes) -> None:
        """A put whose answer was lost finds its own data at the next try."""
        if not self._store.create(key, data) and self._store.get(key) != data:
            raise EpochLost

    def _catch_up(self, epoch: int, table: OutputTable | None) -> None:
        """With what the former writer was told is durable until the claim."""
        now = self._listed()
        former = self._former.epoch if self._former else 0
        # Also those that were seen half-written, where files have no second name.
        heads = [self._head(other) for other in sorted(now.heads) if former <= other < epoch]
        if now.highest > epoch or [head for head in heads if head] != ([self._former] if self._former else []):
            raise EpochLost
        if self._former and now.last(former) > self._takes.get(former, 0):
            added = [number for number in now.numbers[former] if number > self._takes.get(former, 0)]
            self._read_into(table, [(former, number) for number in added])
            self._takes[former] = now.last(former)

    def append(self, entries: list[Entry]) -> int:
        """Durable on return: how many bytes, and `entries` is empty.

        After an error they are what isn't known to count, and may come again among others: what is written already is
        not written again. Raises EpochLost, JournalGone and other StoreErrors, JournalFull.
        """
        assert self._epoch, "not taken"
        written = {id(entry) for entry in self._unchecked}
        rest = [entry for entry in entries if id(entry) not in written]
        while rest:
            group = _first_group(rest)
            self._unchecked_bytes += self._write(group)
            self._unchecked += rest[: len(group)]
            del rest[: len(group)]
        if entries:
            self._check_epoch()
        entries.clear()
        self._unchecked.clear()
        size, self._unchecked_bytes = self._unchecked_bytes, 0
        return size

    # Writing

    def _write(self, group: list[msgspec.Raw]) -> int:
        for _ in range(_MOST_NUMBERS_TAKEN):
            number = self._last + 1
            data = sealed_segment(number, group)
            if self.bytes + len(data) > self._max_bytes:
                raise JournalFull(f"a segment of {len(data)} bytes would follow {self.bytes}; {self._max_bytes} may be")
            # Before the attempt: one that seems to have failed may yet come to be.
            self._last = number
            if self._store.create(segment_key(self._job_id, self._epoch, number), data):
                self.bytes += len(data)
                return len(data)
        raise StoreError(
            f"{self._store.describe}: says that {_MOST_NUMBERS_TAKEN} segments exist that it was not given"
        )

    def _check_epoch(self) -> None:
        """Any higher claim means that it is lost: the next one may be deleted already, as its epoch counts nothing."""
        before: list[int] = []
        for _ in range(_MOST_LOOKS):
            higher = self._higher_epochs()
            if any(self._store.exists(claim_key(self._job_id, epoch)) for epoch in higher):
                self._epoch = 0
                raise EpochLost
            if higher == before:
                break
            before = higher  # one without a claim is about to get one, or its deleter has a higher one
        else:
            raise StoreError(f"{self._store.describe}: a job's epochs come and go, each time they are looked at")
        if self._store.get(claim_key(self._job_id, self._epoch)) != self._writer.encode():
            self._epoch = 0
            raise JournalGone(f"{self._store.describe}: the job's journal has been deleted")

    def _higher_epochs(self) -> list[int]:
        names = self._store.folders(f"jobs/{self._job_id}/")
        return sorted((int(name) for name in names if _EPOCH.fullmatch(name) and int(name) > self._epoch), reverse=True)

    # Reading

    def _look(self, on_answer: Callable[[], None]) -> tuple[_Listing, Head | None]:
        """With the newest head that counts. A listed one that is gone has a higher one that was not listed."""
        for _ in range(_MOST_LOOKS):
            listing = self._listed()
            on_answer()
            for epoch in sorted(listing.heads, reverse=True):
                if (head := self._head(epoch)) is not None:
                    return listing, head
                if not self._store.exists(head_key(self._job_id, epoch)):
                    break
            else:
                return listing, None
        raise StoreError(f"{self._store.describe}: what is listed of a job is deleted before it is read, each time")

    def _listed(self) -> _Listing:
        prefix = f"jobs/{self._job_id}/"
        numbers: dict[int, list[int]] = {}
        heads, claims = set(), set()
        for key in self._store.keys(prefix):
            found = re.fullmatch(r"(\d{16,})/(claim|head|\d{8,})", key[len(prefix) :])
            if found:
                epoch = int(found[1])
                of_epoch = numbers.setdefault(epoch, [])
                if found[2] == "claim":
                    claims.add(epoch)
                elif found[2] == "head":
                    heads.add(epoch)
                else:
                    of_epoch.append(int(found[2]))
        return _Listing(numbers, frozenset(heads & claims))

    def _head(self, epoch: int) -> Head | None:
        """If it is there and intact."""
        data = self._store.get(head_key(self._job_id, epoch))
        if data is None:
            return None
        try:
            head = opened(Head, data)
            if head.epoch != epoch:
                raise CorruptFile(f"it is epoch {head.epoch}'s")
        except CorruptFile as error:
            _LOG.warning("The head of a job's epoch %d is dropped: %s", epoch, error)
            return None
        return head

    def _read(self, head: Head, table: OutputTable | None, on_answer: Callable[[], None]) -> Found:
        places = [
            (epoch, number)
            for epoch, last in self._takes.items()
            for number in sorted(self._seen.numbers.get(epoch, ()))
            if number <= last
        ]
        segments = self._read_into(table, places, on_answer)
        return Found(
            secret=head.secret,
            created=head.created,
            segments=segments,
            bytes=self.bytes,
        )

    def _read_into(
        self, table: OutputTable | None, places: list[tuple[int, int]], on_answer: Callable[[], None] = lambda: None
    ) -> int:
        """How many are intact."""
        segments = size = dropped = 0
        for (_, number), data in self._fetched(places):
            on_answer()
            try:
                segment = opened(Segment, data or b"")
                if segment.number != number:
                    raise CorruptFile(f"number {segment.number}")
            except CorruptFile:
                dropped += 1
                continue
            segments += 1
            size += len(data or b"")
            self.closed_slots |= {entry.slot for entry in segment.entries if isinstance(entry, SlotClosed)}
            if table is not None:
                table.load(segment.entries)
        self.bytes += size
        if dropped:
            _LOG.warning("%d of a job's %d segments are torn, changed or missing: dropped", dropped, len(places))
        return segments

    def _fetched(self, places: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], bytes | None]]:
        """In order, and a few at once where each is a round trip."""
        keys = [segment_key(self._job_id, *place) for place in places]
        if self._store.is_local:
            yield from zip(places, map(self._store.get, keys), strict=True)
            return
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            for first in range(0, len(keys), _READ_AT_ONCE):
                some = slice(first, first + _READ_AT_ONCE)
                yield from zip(places[some], pool.map(self._store.get, keys[some]), strict=True)

    # Deleting

    def _delete_spent(self) -> None:
        """Takeovers that were left without a segment, and what came too late to count. On S3 the bucket's lifecycle
        rule does it: there a look at hundreds of them is one call."""
        spent = self._seen.numbers.keys() - self._takes.keys()
        if not self._store.is_local or len(spent) <= _MOST_SPENT:
            return
        try:
            self._check_epoch()  # a higher one may count them
            self._delete_epochs(spent)
        except JournalGone as error:
            raise EpochLost from error
        except StoreError as error:  # the next one tries again
            _LOG.warning("%d of a job's epochs that count nothing are left: %s", len(spent), error)

    def _delete_epochs(self, epochs: Iterable[int], on_answer: Callable[[], None] = lambda: None) -> None:
        """Only these: a writer that comes meanwhile has a higher one. The newest last, as it says what they are."""
        for epoch in sorted(epochs):
            self._store.delete(f"jobs/{self._job_id}/{epoch:016d}/")
            on_answer()


def _first_group(entries: list[Entry]) -> list[msgspec.Raw]:
    """As many as make one object."""
    group: list[msgspec.Raw] = []
    size = 0
    for entry in entries:
        raw = encoded(entry)
        size += len(memoryview(raw))
        if group and size > _SEGMENT_BYTES:
            break
        group.append(raw)
    return group
