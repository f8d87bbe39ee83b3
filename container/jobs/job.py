"""A job: work that outlives the requests for it. Same name and same request, or just the same request: same job.

What was generated for it is journalled, and generated once: requests attached to it at the same time share its
generations, and a later one goes on where the former ones had to leave it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from container.core import Seeds
from container.errors import OutOfSpace
from container.jobs.attachment import Attachment
from container.jobs.generation import Generation
from container.jobs.slots import NAMED, SHARED, Slots
from container.journal.job_log import DigestConflict, EpochLost, Found, JobLog, JournalFull, JournalGone
from container.journal.output_table import OutputTable, Saved
from container.journal.segment import Entry, GenerationKey, SlotClosed
from container.journal.stores.store import StoreError

logger = logging.getLogger(__name__)

InThread = Callable[[Callable[[], object]], Awaitable[object]]

_MOST_RIVALS = 8
"""Servers that take the same job at the same moment, before one that wants it, too, waits for its next turn."""
_PAUSE_S = 0.02
"""At most, after the first time; doubled each time."""
_TAKEN_EACH_TIME = "other servers took the job again and again"
_LOST: dict[type[Exception], str] = {
    EpochLost: "another server has taken it",
    DigestConflict: "its name is another request's",
}


@dataclass(frozen=True, slots=True)
class Access:
    """How a job gets at its journal. Threads that write never wait behind those that read."""

    new_log: Callable[[], JobLog]
    new_table: Callable[[], OutputTable]
    """Raises OutOfSpace."""
    reading: InThread
    writing: InThread


@dataclass(frozen=True, slots=True)
class _Past:
    """What a worker thread found in the journal, and took."""

    log: JobLog
    seeds: Seeds
    table: OutputTable | None = None
    closed_slots: frozenset[int] = frozenset()


class Job:
    """Owns its generations, and what of them isn't in the journal yet.

    `on_note` is called with the bytes that are to be journalled more, or less.
    """

    opening: asyncio.Task[None]
    """Set by who makes it."""

    def __init__(
        self, id: str, name: str | None, digest: str, access: Access, *, on_note: Callable[[int], None]
    ) -> None:
        self.id = id
        self.name = name
        self.digest = digest
        self.generations: dict[GenerationKey, Generation] = {}
        self.attachments: set[Attachment] = set()
        self.is_stored = False
        """Whether the journal has anything of it."""
        self.was_left = False
        """Whether a request went away before it had all of it."""
        self.is_given_up = False
        """Whether it is no longer journalled: another server has taken it, or it has grown too large."""
        self.unsaved_bytes = 0
        self.answers_heard = 0
        """Of the store, while it is opened."""
        self._access = access
        self._on_note = on_note
        self._log = access.new_log()
        self._using_log = asyncio.Lock()
        self._seeds = Seeds.random()
        self._slots = Slots()
        self._written_slots: set[int] = set()
        self._table: OutputTable | None = None
        self._remembering: asyncio.Task[None] | None = None
        self._went_ahead = self._is_taken = False
        self._keeps_drawn = True
        self._has_past = self._has_ended = (
            False  # what the journal had, and generations of its own: work that isn't done again
        )
        self._has_lost = False  # some of that, as somebody deleted the journal
        self._unsaved: list[Entry] = []
        self._writing: list[Entry] = []
        self._late: list[Entry] | None = None

    # Its past

    async def open(self) -> None:
        """Learn from the journal what there is. Raises DigestConflict, StoreError, OutOfSpace; then it begins anew.

        One that has a past is taken from whoever else is writing it. A new one is not taken before there is something
        to write: a request that is refused leaves the name to others.
        """
        async with self._using_log:
            past = await self._access.reading(self._take_past)
            assert isinstance(past, _Past)
            if not self._went_ahead:
                self._adopt(past)
            elif past.table is not None:
                past.table.close()

    def go_ahead(self) -> None:
        """It does not wait for the journal any longer. If there is a past, it is too late for it."""
        self._went_ahead = True

    def _heard(self) -> None:
        self.answers_heard += 1

    def _take_past(self) -> _Past:
        for attempt in range(_MOST_RIVALS):
            log, table = self._access.new_log(), self._access.new_table()
            try:
                found = log.open(table, self._heard)
                if found is None:
                    table.close()
                    return _Past(log, self._seeds)
                log.take(found.secret, table)
                return _Past(log, Seeds(found.secret), table, frozenset(log.closed_slots))
            except EpochLost:
                table.close()
                _let_rivals_finish(attempt)
            except BaseException:
                table.close()
                raise
        raise StoreError(_TAKEN_EACH_TIME)

    def _adopt(self, past: _Past) -> None:
        self._log, self._seeds, self._table = past.log, past.seeds, past.table
        if past.table is not None:
            self._is_taken = self.is_stored = self._has_past = True
            begun = past.table.slots()
            self._written_slots |= begun
            self._slots.adopt(begun, past.closed_slots)
            finished, unfinished, tokens = past.table.counts()
            counts = {"finished": finished, "unfinished": unfinished, "tokens": tokens}
            extra = {"action": "job_resumed", "job": self.label, **counts}
            logger.info("a job goes on: %d sequences finished, %d begun", finished, unfinished, extra=extra)

    def remember(self) -> asyncio.Task[None] | None:
        """For a request that comes later than others: what they have had already. Once it is done, all is known."""
        if self._remembering is None and self._table is None:
            try:
                self._table = self._access.new_table()
            except OutOfSpace as error:
                self._forget_all(error)
                return None
            self._late = [*self._writing, *self._unsaved]
            self._remembering = asyncio.create_task(self._load(self._table))
        return self._remembering

    async def _load(self, table: OutputTable) -> None:
        try:
            if self.is_stored:
                found = await self._access.reading(lambda: self._access.new_log().open(table))
                if isinstance(found, Found) and found.secret != self._seeds.secret:
                    self._forget_all("another server has begun the job anew")
        except (StoreError, OutOfSpace, DigestConflict) as error:
            logger.warning("what is journalled can't be read, and may be generated again: %s", error)
        finally:
            late, self._late = self._late, None
            self._put(late or [])

    # Its present

    @property
    def label(self) -> str:
        """As logs tell it."""
        return self.name or f"sha256:{self.digest[:16]}"

    def place(self, attachment: Attachment) -> None:
        """Give the request its slot, when the past is known."""
        attachment.slot = NAMED if self.name is not None else self._slots.take()

    def release(self, attachment: Attachment, *, is_complete: bool) -> None:
        self.attachments.discard(attachment)
        self.was_left |= not is_complete
        slot = attachment.slot
        if self.name is not None or slot == SHARED:
            return
        if not is_complete or not attachment.has_random_seeds:
            self._slots.leave(slot)
            return
        self._unsaved = [entry for entry in self._unsaved if entry.slot != slot]
        if slot in self._written_slots or any(entry.slot == slot for entry in self._writing):
            self._written_slots.discard(slot)
            self._note(SlotClosed(slot))
        if self._table is not None:
            try:
                self._table.drop(slot)
            except OutOfSpace as error:
                self._forget_all(error)

    def seeds(self, slot: int) -> Seeds:
        return Seeds(self._seeds.secret, slot)

    def saved(self, key: GenerationKey) -> Saved | None:
        try:
            return None if self._table is None else self._table.get(key)
        except OutOfSpace as error:
            self._forget_all(error)
            return None

    def begin(self, generation: Generation) -> None:
        self.generations[generation.key] = generation
        generation.start()

    def end(self, generation: Generation) -> None:
        """It has ended by itself, or nobody waits for it."""
        if self.generations.get(generation.key) is generation:
            del self.generations[generation.key]
            self._has_ended = True
            self._note_generation(generation)

    def freeze(self) -> None:
        """Nothing more is generated, whoever waits for it."""
        for generation in list(self.generations.values()):
            generation.withdraw()
            self.end(generation)

    # Its journal

    @property
    def has_unsaved(self) -> bool:
        return bool(self._unsaved or self._writing)

    @property
    def is_worth_saving(self) -> bool:
        """What no request has left is answered before it is ever written, if it takes no time."""
        return self.name is not None or self.is_stored or self.was_left or bool(self._writing)

    def is_saved(self, attachment: Attachment) -> bool:
        """Whether the journal has all that was generated for the request."""
        is_whole = not self._has_lost and (self._keeps_drawn or not attachment.has_random_seeds)
        return self.is_stored and is_whole and not self.is_given_up and not self.has_unsaved

    async def save(self) -> int:
        """All that was generated until now is in the journal, durably: how many bytes that took. Raises StoreError."""
        async with self._using_log:
            for generation in self.generations.values():
                self._note_generation(generation)
            if self.is_given_up:
                self._log.forget()
            if self.is_given_up or not self._unsaved:
                return 0
            self._writing, self._unsaved = self._unsaved, []
            self._written_slots |= {entry.slot for entry in self._writing} - {SHARED}
            try:
                written = await self._access.writing(self._write)
            except (EpochLost, DigestConflict, JournalFull) as error:
                self._writing = []
                self.give_up(str(error) or _LOST[type(error)])
                return 0
            except BaseException as error:
                if not self.is_given_up:
                    self._unsaved = self._writing + self._unsaved
                if isinstance(error, JournalGone):
                    self._begin_again()
                raise
            finally:
                self._writing = []
                self._count(sum(map(_size, self._unsaved)) - self.unsaved_bytes)
            self.is_stored = True
            assert isinstance(written, int)
            return written

    def _write(self) -> int:
        if not self._is_taken:
            secret = self._taken()
            self._is_taken = True
            # Seeds that were drawn while the past was not known are worth nothing to those who go on.
            self._keeps_drawn = secret == self._seeds.secret
        if not self._keeps_drawn:
            self._writing[:] = [entry for entry in self._writing if entry.slot == SHARED]
        return self._log.append(self._writing)

    def _taken(self) -> bytes:
        """The job's secret. Nothing is lost of a past that could not be read when the job began, or came later."""
        for attempt in range(_MOST_RIVALS):
            self._log = self._access.new_log()
            found = self._log.open()
            secret = self._seeds.secret if found is None else found.secret
            try:
                self._log.take(secret)
                return secret
            except EpochLost:
                _let_rivals_finish(attempt)
        raise StoreError(_TAKEN_EACH_TIME)

    def _begin_again(self) -> None:
        """Somebody has deleted the journal: a new one has at least all of what is at work."""
        self._is_taken = False
        self._keeps_drawn = True
        self._has_lost |= self._has_past or self._has_ended
        for generation in self.generations.values():
            generation.kept_tokens = 0

    def give_up(self, reason: str) -> None:
        """It goes on without a journal."""
        self.is_given_up = True
        self._unsaved = []
        self._count(-self.unsaved_bytes)
        logger.warning("a job is no longer journalled: %s", reason, extra={"action": "job_lost", "job": self.label})

    def close(self) -> None:
        """For a worker thread: frees its memory of the past."""
        if self._table is not None:
            self._table.close()

    def _note_generation(self, generation: Generation) -> None:
        if (record := generation.new_record()) is not None:
            self._note(record)

    def _note(self, entry: Entry) -> None:
        self._put([entry])
        if not self.is_given_up and (self._keeps_drawn or entry.slot == SHARED):
            self._unsaved.append(entry)
            self._count(_size(entry))

    def _count(self, size: int) -> None:
        self.unsaved_bytes += size
        self._on_note(size)

    def _put(self, entries: list[Entry]) -> None:
        """So that it can be had again, by another request. Not before what came before them."""
        if self._late is not None:
            self._late += entries
            return
        try:
            if self._table is not None:
                self._table.put(entries)
        except OutOfSpace as error:
            self._forget_all(error)

    def _forget_all(self, cause: OutOfSpace | str) -> None:
        logger.warning("what is journalled is of no use, and may be generated again: %s", cause)
        if self._table is not None:
            self._table.close()
            self._table = None


def _let_rivals_finish(attempt: int) -> None:
    """Else each stops the other again."""
    if attempt < _MOST_RIVALS - 1:
        time.sleep(random.uniform(0, _PAUSE_S) * 2**attempt)


def _size(entry: Entry) -> int:
    """In memory, about."""
    if isinstance(entry, SlotClosed):
        return 64
    return 256 + len(entry.token_ids) + sum(160 + 116 * len(score.top) for score in entry.logprobs)
