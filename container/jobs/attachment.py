"""A lease: a request's part in a job, from its attachment until its client has the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from container.core import Seeds
from container.jobs.generation import Generation, Track
from container.jobs.slots import SHARED
from container.journal.segment import TrackKey
from container.tokenization.preparer import Prepared

if TYPE_CHECKING:
    from container.invocations.invocation import Service
    from container.jobs.job import Job


class Lease:
    """`lane` is given when the job's past is known. `resumed_tokens` did not have to be waited for."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.lane = SHARED
        self.resumed_tokens = 0
        self.has_drawn = False

    @property
    def seeds(self) -> Seeds:
        return self.job.seeds(self.lane)

    def generate(self, service: Service, prepared: Prepared, place: int, item: int, choice: int) -> Generation:
        """Begin the choice, join those who wait for it, or take it from the journal. End with `leave`."""
        self.has_drawn |= prepared.is_drawn
        key = TrackKey(self.lane if prepared.is_drawn else SHARED, place, item, choice)
        track = self.job.tracks.get(key)
        if track is None:
            saved = self.job.saved(key)
            track = Track(key, prepared, service=service, owner=self, saved=saved, on_end=self.job.end)
            self.resumed_tokens += track.resumed_tokens
            service.metrics.resumed_tokens.inc(track.resumed_tokens)
            if not track.has_ended:
                self.job.begin(track)
        return Generation(track)

    def leave(self, generation: Generation) -> None:
        """What nobody waits for is freed, after it was noted."""
        track = generation.track
        track.waiting.discard(generation)
        if not track.waiting and not track.has_ended:
            track.withdraw()
            self.job.end(track)
