"""A job: work that outlives the requests for it. Same name and same request, or just the same request: same job.

What was generated for it is journalled, and generated once: requests attached to it at the same time share its
generations, and a later one continues where the former ones had to leave it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Set
from dataclasses import dataclass, field

from container.core import Seeds
from container.jobs.generation import Generation, Waiter
from container.jobs.generator import Generator
from container.jobs.job_journal import JobJournal, JournalContext
from container.journal.segment import SHARED, GenerationKey, Record
from container.tokenization.preparer import Prepared

logger = logging.getLogger(__name__)

NAMED = SHARED + 1
"""Slot of outputs with random seeds, in a job with a name."""


class Job:
    """Owns its generations at work, the requests attached to it, their slots, and its journal."""

    opening: asyncio.Task[None]
    """The task that opens it, which the registry begins."""

    def __init__(self, id: str, name: str | None, digest: str, context: JournalContext) -> None:
        self.id = id
        self.name = name
        self.digest = digest
        self.label = name or f"sha256:{digest[:16]}"
        """Name in log lines."""
        self.generations: dict[GenerationKey, Generation] = {}
        self.attachments: set[Attachment] = set()
        self.was_left = False
        """True once a request went away before it had all of its answer."""
        self.slots = Slots()
        self.journal = JobJournal(id, digest, self.label, context)

    async def open(self) -> None:
        """Open the journal and continue from what is there. Raises DigestConflict."""
        past = await self.journal.open()
        if past is None:
            return
        self.slots.adopt(past.slots, past.closed_slots)
        counts = past.counts
        extra = {"action": "job_resumed", "job": self.label, **counts._asdict()}
        logger.info("a job goes on: %d sequences finished, %d begun", counts.finished, counts.unfinished, extra=extra)

    def release(self, attachment: Attachment, *, is_complete: bool) -> bool:
        """Let a request go; True if the job can be forgotten. `is_complete`: its client has all of its answer."""
        self.attachments.discard(attachment)
        self.was_left |= not is_complete
        if not self.attachments and not self.is_worth_saving and self.opening.done():
            return True
        if self.name is None and attachment.slot != SHARED:
            if is_complete and attachment.has_random_seeds:
                self.journal.close_slot(attachment.slot)
            else:
                self.slots.leave(attachment.slot)
        return False

    def end(self, generation: Generation, record: Record | None) -> None:
        """Take leave of a generation that has ended, or that no one waits for. `record` is its last."""
        if self.generations.get(generation.key) is generation:
            del self.generations[generation.key]
            self.journal.has_finished_work = True
            if record is not None:
                self.journal.add(record)

    def freeze(self) -> None:
        """End all generations, even those that requests wait for."""
        for generation in list(self.generations.values()):
            generation.withdraw()
            self.end(generation, generation.new_record())

    @property
    def is_worth_saving(self) -> bool:
        """False for a request without a name that is answered before any of it is written."""
        return self.name is not None or self.was_left or self.journal.is_begun

    async def save(self) -> int:
        """Write all that was generated until now; return the bytes that this took. Raises StoreError."""
        return await self.journal.save(self.generations.values())


class Attachment:
    """A request's part in a job, from its arrival until its client has the answer."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.slot = SHARED
        self.seeds = Seeds(job.journal.secret)
        """Random seeds of the request's items, once it has a slot."""
        self.resumed_tokens = 0
        """Output tokens that came from the journal."""
        self.has_random_seeds = False
        """True once an output with a random seed was asked for."""

    def take_slot(self) -> None:
        """Take a slot, once the job's past is known."""
        self.slot = NAMED if self.job.name is not None else self.job.slots.take()
        self.seeds = Seeds(self.job.journal.secret, self.slot)

    def generate(self, generator: Generator, prepared: Prepared, line: int, item: int, choice: int) -> Waiter:
        """Begin the choice, join those who wait for it, or take it from the journal. End with `leave`."""
        job = self.job
        self.has_random_seeds |= prepared.has_random_seed
        key = GenerationKey(self.slot if prepared.has_random_seed else SHARED, line, item, choice)
        generation = job.generations.get(key)
        if generation is None:
            outputs = job.journal.outputs
            saved = None if outputs.table is None else outputs.get(key)
            generation = Generation(key, prepared, generator, owner=self, on_end=job.end, saved=saved)
            if generation.resumed_tokens:
                self.resumed_tokens += generation.resumed_tokens
                generator.metrics.resumed_tokens.inc(generation.resumed_tokens)
                if outputs.is_loading:  # what is loaded later may differ: then none of it may come between
                    generation.recorded_tokens = 0
            if not generation.has_ended:
                job.generations[key] = generation
                generation.start()
        return Waiter(generation)

    def leave(self, waiter: Waiter) -> None:
        """End the wait. A generation that no one waits for any more is stopped, after it was recorded."""
        generation = waiter.generation
        generation.waiters.discard(waiter)
        if not generation.waiters and not generation.has_ended:
            generation.withdraw()
            self.job.end(generation, generation.new_record())


@dataclass(slots=True)
class Slots:
    """Numbers that tell a job's requests apart where outputs have random seeds, and are not the same for all.

    A job with a name needs none but NAMED. Without a name each request has a slot of its own, until its answer has
    arrived: the first that another one left unfinished, else a new one.
    """

    _left: set[int] = field(default_factory=set)
    _next: int = SHARED + 1

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
