"""The writing half of a job's journal: taking the job from other writers, and appending to it.

A writer takes a job by the claim to a higher epoch: each writer looks for one after it has written segments, before it
calls them durable. Therefore what is there after the claim is all that counts. The head of the new epoch says how much
of each earlier one that is; what an earlier writer adds later is ignored. In a directory, epochs that count nothing are
deleted in time.

A job may be deleted at any time, and begun anew: a new epoch is also higher than the time in microseconds, by a random
part of a second, so that nothing that is written or deleted late meets what came after it. The reading half has the
layout of the keys.

StoreError
└── JournalGone   the job's objects were deleted by another process
EpochLost         another writer has taken the job
JournalFull       the job is over its limit
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Sequence
from itertools import islice

import msgspec

from container.journal.job_reader import MAX_LOOKS, JobReader, claim_key, folder_key, head_key, segment_key
from container.journal.output_table import OutputTable
from container.journal.segment import Entry, Head, encode_entry, encode_head, encode_segment
from container.journal.stores.store import StoreError

_SEGMENT_BYTES = 8 << 20
"""Size to which segments grow, about: each is read as a whole."""
_MAX_TAKEN_NUMBERS = 100
"""Numbers tried before a store that says all exist is not believed."""
_MAX_UNUSED_EPOCHS = 8
"""Epochs that count nothing, until they are deleted. Each look at a job goes through all of them, and a finished job
gets a new one each time it is asked for."""
_EPOCHS_PER_SECOND = 1_000_000
_EPOCH = re.compile(r"\d{16,}")

_LOG = logging.getLogger(__name__)


class EpochLost(Exception):
    """Another writer has taken the job. This one writes no more."""


class JournalFull(Exception):
    """The job's journal would be over its limit."""


class JournalGone(StoreError):
    """The job's objects were deleted, by another server's sweep or an operator. Read, take and append all again."""


class JobLog:
    """Writes one job's journal, in an epoch of its own. One caller at a time.

    First `take`, then `append`. After EpochLost or JournalGone a new reader and a new log are needed.
    """

    def __init__(self, reader: JobReader, *, writer: str, max_bytes: int) -> None:
        """`reader` has looked at the job."""
        self.reader = reader
        self.epoch = 0
        """This writer's epoch; 0: none."""
        self.bytes = reader.bytes
        self._job_id = reader.job_id
        self._writer = f"{writer}-{secrets.token_hex(8)}"  # tells this writer's own claim and head from others'
        self._max_bytes = max_bytes
        self._created: float | None = None if reader.head is None else reader.head.created
        self._claimed = 0  # epoch that this writer's claim may be in
        self._has_claim = False
        self._last_number = 0  # highest number that may exist in the epoch
        self._written = 0  # entries at the front of the next `append` that segments have already
        self._written_bytes = 0

    def take(self, secret: bytes, table: OutputTable | None = None, *, clock: float | None = None) -> None:
        """Make the job this writer's, and add what its former writer has written since it was read to `table`.

        `clock` is the Unix time that chat templates see, by default the one that they saw before.

        Raises EpochLost if another writer took it since, began it anew or deleted it, and StoreError, after which it
        may be called again.
        """
        reader = self.reader
        if self._created is None:
            self._created = reader.clock()
        if not self._claimed:
            lowest = max(reader.listing.highest, int(reader.clock() * _EPOCHS_PER_SECOND)) + 1
            self._claimed = lowest + secrets.randbelow(_EPOCHS_PER_SECOND)
        epoch = self._claimed
        if not self._has_claim:
            # From here on the former writer learns that it has lost the job.
            self._create_own(claim_key(self._job_id, epoch), self._writer.encode())
            self._has_claim = True
        elif reader.store.get(claim_key(self._job_id, epoch)) != self._writer.encode():
            # The job was deleted. A new claim would make a head count that was put after that.
            raise EpochLost
        self._catch_up(epoch, table)
        head = Head(
            digest=reader.digest,
            secret=secret,
            epoch=epoch,
            created=self._created,
            writer=self._writer,
            included=list(reader.included.items()),
            clock=reader.template_clock if clock is None else clock,
        )
        self._create_own(head_key(self._job_id, epoch), encode_head(head))
        self.epoch, self._last_number = epoch, 0
        self._delete_unused_epochs()

    def _create_own(self, key: str, data: bytes) -> None:
        """Create an object; a try whose answer was lost finds its own data there the next time."""
        store = self.reader.store
        if not store.create(key, data) and store.get(key) != data:
            raise EpochLost

    def _catch_up(self, epoch: int, table: OutputTable | None) -> None:
        """Add the segments that the former writer called durable before our claim."""
        reader = self.reader
        now = reader.list_objects()
        former = reader.head.epoch if reader.head else 0
        # Also heads that were seen half-written, where files can't have two names.
        heads = [reader.read_head(other) for other in sorted(now.heads) if former <= other < epoch]
        if now.highest > epoch or [head for head in heads if head] != ([reader.head] if reader.head else []):
            raise EpochLost
        seen = reader.included.get(former, 0)
        if former and now.last(former) > seen:
            before = reader.bytes
            reader.read_segments([(former, number) for number in now.numbers[former] if number > seen], table)
            self.bytes += reader.bytes - before
            reader.included[former] = now.last(former)

    def append(self, entries: Sequence[Entry]) -> int:
        """Write entries and return the bytes that this took. They are durable on return.

        After a StoreError they may be or not: call again with the same entries, to which others may have been added at
        the end. Those that segments have already are not written again. Raises EpochLost, JournalGone and other
        StoreErrors, JournalFull.
        """
        assert self.epoch, "not taken"
        while self._written < len(entries):
            group: list[msgspec.Raw] = []
            size = 0
            for entry in islice(entries, self._written, None):
                raw = encode_entry(entry)
                size += len(memoryview(raw))
                if group and size > _SEGMENT_BYTES:
                    break
                group.append(raw)
            self._written_bytes += self._write_segment(group)
            self._written += len(group)
        if entries:
            self._check_epoch()
        written_bytes, self._written, self._written_bytes = self._written_bytes, 0, 0
        return written_bytes

    def _write_segment(self, entries: list[msgspec.Raw]) -> int:
        store = self.reader.store
        for _ in range(_MAX_TAKEN_NUMBERS):
            number = self._last_number + 1
            data = encode_segment(number, entries)
            if self.bytes + len(data) > self._max_bytes:
                raise JournalFull(
                    f"{self.bytes} bytes and a segment of {len(data)} are more than the limit of {self._max_bytes}"
                )
            # Before the attempt: one that seems to have failed may yet come to be.
            self._last_number = number
            if store.create(segment_key(self._job_id, self.epoch, number), data):
                self.bytes += len(data)
                return len(data)
        raise StoreError(f"{store.describe}: says that {_MAX_TAKEN_NUMBERS} segments exist that it was not given")

    def _check_epoch(self) -> None:
        """Raise EpochLost if there is a higher claim. Its epoch may count nothing and be deleted at any moment."""
        store = self.reader.store
        before: list[int] = []
        for _ in range(MAX_LOOKS):
            names = store.folders(folder_key(self._job_id))
            epochs = (int(name) for name in names if _EPOCH.fullmatch(name))
            higher = sorted((epoch for epoch in epochs if epoch > self.epoch), reverse=True)
            if any(store.exists(claim_key(self._job_id, epoch)) for epoch in higher):
                self.epoch = 0
                raise EpochLost
            if higher == before:
                break
            before = higher  # one without a claim is about to get one, or its deleter has a higher one
        else:
            raise StoreError(f"{store.describe}: the job's epochs kept changing while they were being checked")
        if store.get(claim_key(self._job_id, self.epoch)) != self._writer.encode():
            self.epoch = 0
            raise JournalGone(f"{store.describe}: the job's journal has been deleted")

    def _delete_unused_epochs(self) -> None:
        """Delete takeovers that were left without a segment, and what came too late to count.

        On S3 the bucket's lifecycle rule does it: there a look at hundreds of them is one call.
        """
        unused = self.reader.listing.numbers.keys() - self.reader.included.keys()
        if not self.reader.store.is_local or len(unused) <= _MAX_UNUSED_EPOCHS:
            return
        try:
            self._check_epoch()  # a higher one may count them
            self.reader.delete_epochs(unused)
        except JournalGone as error:
            raise EpochLost from error
        except StoreError as error:  # the next writer tries again
            _LOG.warning("%d of a job's epochs that count nothing are left: %s", len(unused), error)
