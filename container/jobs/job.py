"""A job: work that outlives the requests for it. Same name and same request, or just the same request: same job.

What was generated for it is journalled, and generated once: requests attached to it at the same time share its
generations, and a later one continues where the former ones had to leave it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Set
from dataclasses import dataclass, field

from container.core import Constants
from container.jobs.generation import Generation, Waiter
from container.jobs.generator import Generator
from container.jobs.job_journal import JobJournal, JournalContext
from container.journal.segment import SHARED, GenerationKey, Record
from container.tokenization.preparer import Prepared

logger = logging.getLogger(__name__)

NAMED = SHARED + 1
"""Slot of outputs with random seeds, in a job with a name."""
_SLOT_BITS = 60
"""Width of a slot's number. At random, none is given out twice, whatever a journal has of those before."""


class Job:
    """Owns its generations at work, the requests attached to it, their slots, and its journal."""

    opening: asyncio.Task[None]
    """The task that opens it, which the registry begins."""

    def __init__(self, id: str, name: str | None, digest: str, context: JournalContext) -> None:
        self.id = id
        self.name = name
        self.digest = digest
        self.generations: dict[GenerationKey, Generation] = {}
        self.attachments: set[Attachment] = set()
        self.was_left = False
        """True once a request went away before it had all of its answer."""
        self.slots = Slots()
        self.journal = JobJournal(id, digest, name, context)
        self.label = self.journal.label
        """Name in log lines."""

    async def open(self) -> None:
        """Open the journal and continue from what is there. Raises DigestConflict."""
        past = await self.journal.open()
        if past is None:
            return
        self.slots.adopt(past.slots)
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
            if is_complete and attachment.has_shared_seeds:
                self.journal.mark_answered()
            if is_complete and attachment.has_random_seeds:
                self.close_slot(attachment)
            elif not attachment.is_slot_closed:
                self.journal.put_slot_back(attachment.slot)
                self.slots.leave(attachment.slot)
        return False

    def set_slot_aside(self, attachment: Attachment) -> None:
        """Write nothing of the request's random outputs while its answer is on its way, if nothing is written yet."""
        if self.name is None and attachment.has_random_seeds:
            self.journal.set_slot_aside(attachment.slot)

    def has_open_slot(self, attachment: Attachment) -> bool:
        """Whether a later server would take the request for one that was cut, even after its answer."""
        return self.name is None and attachment.has_random_seeds and self.journal.has_slot(attachment.slot)

    def close_slot(self, attachment: Attachment) -> None:
        """Use the request's slot for no other one: its client has the answer, or is about to."""
        if not attachment.is_slot_closed:
            attachment.is_slot_closed = True
            self.journal.close_slot(attachment.slot)

    def end(self, generation: Generation, record: Record | None) -> None:
        """Take leave of a generation that has ended, or that no one waits for. `record` is its last."""
        if self.generations.get(generation.key) is generation:
            del self.generations[generation.key]
            self.journal.has_finished_work = True
            if record is not None:
                self.journal.add(record)

    def freeze(self) -> None:
        """End all generations, even those that requests wait for, and let everything be written."""
        self.journal.put_slots_back()
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
        self.constants = Constants(job.journal.secret)
        """Values that the request's items are made with, once it has a slot."""
        self.resumed_tokens = 0
        """Output tokens that came from the journal."""
        self.changed_prompts = 0
        """Outputs that the journal has with another prompt, and that are generated anew."""
        self.has_random_seeds = False
        """True once an output with a random seed was asked for."""
        self.has_shared_seeds = False
        """True once an output without one was asked for."""
        self.is_slot_closed = False

    def take_slot(self) -> None:
        """Take a slot, once the job's past is known."""
        self.slot = NAMED if self.job.name is not None else self.job.slots.take()
        self.constants = Constants(self.job.journal.secret, self.slot, self.job.journal.clock)

    def generate(self, generator: Generator, prepared: Prepared, line: int, item: int, choice: int) -> Waiter:
        """Begin the choice, join those who wait for it, or take it from the journal. End with `leave`."""
        job = self.job
        self.has_random_seeds |= prepared.has_random_seed
        self.has_shared_seeds |= not prepared.has_random_seed
        key = GenerationKey(self.slot if prepared.has_random_seed else SHARED, line, item, choice)
        generation = job.generations.get(key)
        if generation is None:
            outputs = job.journal.outputs
            saved = None if outputs.table is None else outputs.get(key)
            generation = Generation(key, prepared, generator, owner=self, on_end=job.end, saved=saved)
            if generation.has_changed_prompt and not job.journal.is_anew:
                self.changed_prompts += 1
                generator.metrics.changed_prompts.inc()
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

    _left: dict[int, None] = field(default_factory=dict)

    def __len__(self) -> int:
        """Slots left unfinished."""
        return len(self._left)

    def take(self) -> int:
        for slot in self._left:
            del self._left[slot]
            return slot
        return NAMED + 1 + secrets.randbelow(1 << _SLOT_BITS)

    def leave(self, slot: int) -> None:
        """Leave the slot unfinished, for a later request."""
        self._left[slot] = None

    def adopt(self, left: Set[int]) -> None:
        """Take over the slots that requests to earlier servers left unfinished. Version 0.1 counted them."""
        self._left |= dict.fromkeys(sorted(left - {SHARED}))
