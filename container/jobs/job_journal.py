"""A job's side of its journal: the outputs that earlier requests left, and the entries still to be written.

Threads of two pools read and write, so that those that write never wait behind those that read. The rest happens on the
event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from container.errors import OutOfSpace
from container.jobs.generation import Generation
from container.jobs.journal_health import JournalHealth
from container.jobs.journal_state import TRANSITIONS, JournalState
from container.jobs.known_outputs import KnownOutputs
from container.jobs.pending_entries import PendingEntries
from container.journal.job_log import EpochLost, JobLog, JournalFull, JournalGone
from container.journal.job_reader import DigestConflict, JobReader
from container.journal.output_table import Counts, OutputTable
from container.journal.segment import SHARED, Entry
from container.journal.stores.store import Store, StoreError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_TAKES = 8
"""Tries to take a job that other servers take at the same moment, before it waits for its next turn."""
_PAUSE_S = 0.02
"""Longest pause after the first try; doubled with each."""
_TAKEN_EACH_TIME = "other servers took the job again and again"
_MAX_LOOKUPS_WHILE_BROKEN = 8
"""Jobs that may wait for a store that fails: as many as there are threads to read."""
_SOON_BYTES = 1 << 20
"""Unsaved bytes of all jobs at which they are written at once."""
_MAX_UNSAVED_BYTES = 256 << 20
"""Unsaved bytes of all jobs, while the store fails, above which the job with the most is no longer journalled."""


class Backlog:
    """Counts the bytes, in memory, of all jobs' entries that wait to be written."""

    def __init__(self) -> None:
        self.bytes = 0
        self.is_due = asyncio.Event()
        """Set when there is so much that it is to be written at once."""
        self.sizes: Counter[JobJournal] = Counter()
        """Bytes of each journal that has any."""

    def add(self, journal: JobJournal, size: int) -> None:
        """Count a new entry, or, with a negative size, entries that wait no longer."""
        self.bytes += size
        self.sizes[journal] += size
        if not self.sizes[journal]:
            del self.sizes[journal]
        if size > 0 and self.bytes >= _SOON_BYTES:
            self.is_due.set()
        if size > 0 and self.bytes > _MAX_UNSAVED_BYTES:
            largest = max(self.sizes, key=self.sizes.__getitem__)
            largest.give_up("the store has failed for too long, and there is no memory for more")


@dataclass(slots=True, kw_only=True)
class JournalContext:
    """Everything that the journals of all jobs share."""

    store: Store
    health: JournalHealth
    backlog: Backlog
    readers: ThreadPoolExecutor
    writers: ThreadPoolExecutor
    writer: str
    """Name of this server."""
    lifetime_s: float
    max_bytes: int
    """Largest size of a job's journal."""
    spool_dir: str
    lookups: int = 0
    """Jobs that wait for the store to say what it has of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Everything that earlier requests left of a job which now is this server's."""

    log: JobLog
    secret: bytes
    clock: float | None
    """Unix time that chat templates saw; None if the request is no former one that comes again."""
    table: OutputTable
    slots: set[int]
    """Slots with outputs that no client is known to have: where it is the shared one, of its last outputs."""
    counts: Counts


class JobJournal:
    """Owns what the journal has of a job, and the entries that it doesn't have yet."""

    _reader: JobReader
    """The reader at work, while the journal is opened."""
    _log: JobLog
    """The log, once the job is taken."""

    def __init__(self, job_id: str, digest: str, name: str | None, context: JournalContext) -> None:
        self.state = JournalState.UNOPENED
        self.secret = secrets.token_bytes(16) if name is None else named_secret(job_id, digest)
        """Secret that the job's random seeds are made of. The journal keeps it."""
        self.clock = time.time()
        """Unix time that the job's chat templates see. The journal keeps it."""
        self.is_anew = False
        """True if all that it has was answered, to requests that were others: then their prompts may differ."""
        self.is_begun = False
        """True once the store has something of the job, or was given something."""
        self.has_finished_work = False
        """True if there are or were outputs that no generation at work could write again."""
        self.outputs = KnownOutputs()
        self._job_id = job_id
        self._digest = digest
        self._is_named = name is not None
        self.label = name or f"sha256:{digest[:16]}"
        """Name in log lines."""
        self._context = context
        self._lock = asyncio.Lock()
        self._pending = PendingEntries(lambda size: context.backlog.add(self, size))
        self._has_lost_work = False

    def become(self, state: JournalState) -> None:
        """Take the step to `state`. Raises AssertionError if it can't follow the present one."""
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"a journal in state {self.state.name} can't become {state.name}")
        self.state = state

    # Outputs of earlier requests

    async def open(self) -> Past | None:
        """Find out what the store has of the job, and take the job if there is a past.

        If the store fails, or does not answer in time, the job does without it. Raises DigestConflict.
        """
        context = self._context
        try:
            past = await self._open_in_time()
        except (StoreError, OutOfSpace) as error:
            self.become(JournalState.OPEN)
            context.health.report_failure("reading", error)
            return None
        if context.health.is_broken:
            context.health.report_success("reading")
        return past

    async def _open_in_time(self) -> Past | None:
        """Open it while the store goes on answering, as a large journal takes many answers."""
        context, health = self._context, self._context.health
        if health.is_broken and context.lookups >= _MAX_LOOKUPS_WHILE_BROKEN:
            raise StoreError(f"{context.store.describe}: as many jobs as can be wait for an answer already")
        self._reader = self._new_reader()
        opening = asyncio.create_task(self._open())
        context.lookups += 1

        def end(opening: asyncio.Task[Past | None]) -> None:
            context.lookups -= 1
            if not opening.cancelled():
                opening.exception()  # retrieved: if it comes too late, it matters to no one

        opening.add_done_callback(end)
        while not opening.done():
            answered, timeout_s = (self._reader, self._reader.answers), health.timeout_s
            await asyncio.wait({opening}, timeout=timeout_s)
            if not opening.done() and answered == (self._reader, self._reader.answers):
                raise StoreError(f"{context.store.describe}: no answer in {timeout_s:g} s")
        return opening.result()

    async def _open(self) -> Past | None:
        async with self._lock:
            past = await self._run_reader(self._take_past)
            if self.state is not JournalState.UNOPENED:  # the answer came too late: the job has begun anew
                if past is not None:
                    past.table.close()
                return None
            if past is None:
                self.become(JournalState.OPEN)
                return None
            self._log, self.secret, self.outputs.table = past.log, past.secret, past.table
            self.clock, self.is_anew = past.clock or self.clock, past.clock is None
            self._pending.adopt(past.slots)
            self.become(JournalState.TAKEN)
            self.is_begun = self.has_finished_work = True
            return past

    def _take_past(self) -> Past | None:
        """Read the job's journal and take the job; None if there is none. It runs in a thread."""
        for attempt in range(_MAX_TAKES):
            if attempt:
                self._reader = self._new_reader()
            reader = self._reader
            if (secret := reader.open()) is None:
                return None
            with contextlib.ExitStack() as stack, contextlib.suppress(EpochLost):
                table = stack.enter_context(contextlib.closing(OutputTable(self._context.spool_dir)))
                reader.read(table)
                log = self._new_log(reader)
                # Where nothing was left unanswered, a request without a name is no former one that comes again.
                is_again = self._is_named or bool(table.slots() - reader.closed_slots)
                clock = reader.template_clock if is_again else None
                log.take(secret, table, clock=clock or self.clock)
                past = Past(
                    log=log,
                    secret=secret,
                    clock=clock,
                    table=table,
                    slots=table.slots() - reader.closed_slots,
                    counts=table.counts(),
                )
                stack.pop_all()
                return past
            _pause(attempt)
        raise StoreError(_TAKEN_EACH_TIME)

    def load_outputs(self) -> asyncio.Task[None] | None:
        """Load what the job's earlier requests generated, for a later one; None if that is known."""
        outputs = self.outputs
        if outputs.table is None and outputs.loading is None:
            table = OutputTable(self._context.spool_dir)
            outputs.load(table, self._read_again, self._pending.all())
        return outputs.loading

    async def _read_again(self, table: OutputTable) -> bool:
        def read() -> bytes | None:
            reader = self._new_reader()
            secret = reader.open()
            reader.read(table)
            return secret

        return self.state is JournalState.OPEN or await self._run_reader(read) in (None, self.secret)

    # New entries

    @property
    def has_unsaved(self) -> bool:
        return bool(self._pending)

    def has_all(self, *, with_random: bool) -> bool:
        """Whether the store has all that was generated; `with_random`: also what has random seeds."""
        state = self.state
        is_whole = state is JournalState.TAKEN or (state is JournalState.TAKEN_WITHOUT_RANDOM and not with_random)
        return is_whole and not self._has_lost_work and not self.has_unsaved

    def has_slot(self, slot: int) -> bool:
        """Whether the journal has, or may have, outputs of a slot that is not closed."""
        return self._pending.is_open(slot)

    def set_slot_aside(self, slot: int) -> None:
        """Write nothing of a slot whose answer is on its way, if nothing of it is written yet."""
        self._pending.set_aside(slot)

    def put_slot_back(self, slot: int) -> None:
        """Write a slot's outputs after all: its answer has not arrived."""
        self._pending.put_back(slot)

    def put_slots_back(self) -> None:
        """Write everything, as there may be no time for it later."""
        self._pending.put_all_back()

    def close_slot(self, slot: int) -> None:
        """Forget a slot's outputs, and say in the journal, if it has any of them, that it is not to be used again."""
        self._pending.close(slot)
        if self.outputs.table is not None:
            self.outputs.forget_slot(slot)

    def mark_answered(self) -> None:
        """Say in the journal, if it has or gets shared outputs, that a request was answered with them."""
        self._pending.mark_answered()

    def add(self, entry: Entry) -> None:
        """Add an entry that is to be written, and known to later requests."""
        if self.outputs.table is not None:
            self.outputs.add([entry])
        state = self.state
        if state is JournalState.GIVEN_UP or (state is JournalState.TAKEN_WITHOUT_RANDOM and entry.slot != SHARED):
            return
        self._pending.add(entry)

    async def save(self, at_work: Collection[Generation]) -> int:
        """Write all that was generated until now; return the bytes that this took. Raises StoreError.

        `at_work` are the job's generations, seen anew each time they are looked at.
        """
        async with self._lock:
            for generation in at_work:
                if (record := generation.new_record()) is not None:
                    self.add(record)
            if not self.has_unsaved:
                return 0
            self._pending.hand_over()
            self.is_begun = True
            try:
                return await self._write()
            except EpochLost:
                self.give_up("another server has taken it")
            except DigestConflict:
                self.give_up("its name is another request's")
            except JournalFull as error:
                self.give_up(str(error))
            except JournalGone:
                if self.state is not JournalState.GIVEN_UP:
                    self.become(JournalState.OPEN)
                    self._has_lost_work |= self.has_finished_work
                    for generation in at_work:
                        generation.recorded_tokens = 0
                raise
            return 0

    async def _write(self) -> int:
        if self.state is JournalState.OPEN:
            log, secret = await self._run_writer(self._take)
            if self.state is not JournalState.OPEN:  # given up meanwhile
                return 0
            self._log = log
            if secret == self.secret:
                self.become(JournalState.TAKEN)
            else:
                self.become(JournalState.TAKEN_WITHOUT_RANDOM)
                self._pending.drop_random()
        written = await self._run_writer(partial(self._log.append, self._pending.handed_over))
        if self.state is not JournalState.GIVEN_UP:
            self._pending.confirm()
        return written

    def _take(self) -> tuple[JobLog, bytes]:
        """Take the job and return its secret. It runs in a thread.

        Nothing is lost of a past that could not be read when the job began, or that came later.
        """
        for attempt in range(_MAX_TAKES):
            reader = self._new_reader()
            secret = reader.open() or self.secret
            reader.read()
            log = self._new_log(reader)
            try:
                log.take(secret, clock=self.clock)
                return log, secret
            except EpochLost:
                _pause(attempt)
        raise StoreError(_TAKEN_EACH_TIME)

    def give_up(self, reason: str) -> None:
        """Go on without a journal."""
        if self.state is JournalState.GIVEN_UP:
            return
        self.become(JournalState.GIVEN_UP)
        self.forget_entries()
        logger.warning("a job is no longer journalled: %s", reason, extra={"action": "job_lost", "job": self.label})

    def forget_entries(self) -> None:
        """Free the memory of entries that are not to be written."""
        self._pending.clear()

    # Threads

    def _new_reader(self) -> JobReader:
        context = self._context
        return JobReader(context.store, self._job_id, self._digest, lifetime_s=context.lifetime_s)

    def _new_log(self, reader: JobReader) -> JobLog:
        return JobLog(reader, writer=self._context.writer, max_bytes=self._context.max_bytes)

    def _run_reader(self, function: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._context.readers, function)

    def _run_writer(self, function: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._context.writers, function)


def named_secret(job_id: str, digest: str) -> bytes:
    """Return the secret of a job with a name: always the same, so that it needs no journal to give the same texts."""
    return hashlib.sha256(f"seeds {job_id} {digest}".encode()).digest()[:16]


def _pause(attempt: int) -> None:
    """Back off at random, so that competing writers don't stop each other again."""
    if attempt < _MAX_TAKES - 1:
        time.sleep(random.uniform(0, _PAUSE_S) * 2**attempt)
