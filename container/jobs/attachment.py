"""An attachment: a request's part in a job, from its attachment until its client has the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from container.core import Seeds
from container.jobs.generation import Generation, Waiter
from container.jobs.slots import SHARED
from container.journal.segment import GenerationKey
from container.tokenization.preparer import Prepared

if TYPE_CHECKING:
    from container.invocations.service import Service
    from container.jobs.job import Job


class Attachment:
    """`slot` is given when the job's past is known. `resumed_tokens` did not have to be waited for."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.slot = SHARED
        self.resumed_tokens = 0
        self.has_random_seeds = False

    @property
    def seeds(self) -> Seeds:
        return self.job.seeds(self.slot)

    def generate(self, service: Service, prepared: Prepared, line: int, item: int, choice: int) -> Waiter:
        """Begin the choice, join those who wait for it, or take it from the journal. End with `leave`."""
        self.has_random_seeds |= prepared.has_random_seed
        key = GenerationKey(self.slot if prepared.has_random_seed else SHARED, line, item, choice)
        generation = self.job.generations.get(key)
        if generation is None:
            saved = self.job.saved(key)
            generation = Generation(key, prepared, service=service, owner=self, saved=saved, on_end=self.job.end)
            self.resumed_tokens += generation.resumed_tokens
            service.metrics.resumed_tokens.inc(generation.resumed_tokens)
            if not generation.has_ended:
                self.job.begin(generation)
        return Waiter(generation)

    def leave(self, waiter: Waiter) -> None:
        """What nobody waits for is freed, after it was noted."""
        generation = waiter.generation
        generation.waiting.discard(waiter)
        if not generation.waiting and not generation.has_ended:
            generation.withdraw()
            self.job.end(generation)
