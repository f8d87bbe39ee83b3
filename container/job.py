"""A job: work that outlives the requests for it. Same name and same request, or just the same request: same job.

What was generated for it is journalled, and generated once: requests attached to it at the same time share its tracks,
and a later one goes on where the former ones had to leave it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import OutOfSpace
from .journal.log import DigestConflict, EpochLost, Found, JobLog, JournalFull, JournalGone
from .journal.replay import Replay, Saved
from .journal.segment import Entry, LaneClosed, TrackKey
from .journal.store import StoreError
from .preparation import Prepared
from .seeds import Seeds
from .track import Generation, Track

if TYPE_CHECKING:
    from .invocation import Service

logger = logging.getLogger(__name__)

SHARED_LANE = 0
"""Of items that have one right output: greedy and seeded ones, and all of a job with a name."""
_ENTRY_BYTES = 64
"""Of an entry without tokens, about."""
_MOST_RIVALS = 8
"""Servers that take the same job at the same moment, before one that wants it, too, goes on without a journal."""


_LOST: dict[type[Exception], str] = {
    EpochLost: "another server has taken it",
    DigestConflict: "its name is another request's",
}


@dataclass(frozen=True, slots=True)
class _Past:
    """What a worker thread found in the journal."""

    log: JobLog
    seeds: Seeds
    replay: Replay | None = None
    closed_lanes: frozenset[int] = frozenset()


class Job:
    """Owns its tracks, and what of them isn't in the journal yet.

    Without a name, each request attached has a lane of its own for the items whose seeds are drawn: they have no equal.
    A lane is closed when its answer has arrived, and the next same request draws anew.

    `on_note` is called with the bytes of what is to be journalled.
    """

    def __init__(
        self,
        id: str,
        name: str | None,
        digest: str,
        *,
        new_log: Callable[[], JobLog],
        new_replay: Callable[[], Replay],
        in_thread: Callable[[Callable[[], object]], Awaitable[object]],
        on_note: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.id = id
        self.name = name
        self.digest = digest
        self.tracks: dict[TrackKey, Track] = {}
        self.leases: set[Lease] = set()
        self.is_stored = False
        """Whether the journal has anything of it."""
        self.was_left = False
        """Whether a request went away before it had all of it."""
        self.is_given_up = False
        """Whether it is no longer journalled: another server has taken it, or it has grown too large."""
        self.unsaved_bytes = 0
        self.answers_heard = 0
        """Of the store, while it is opened."""
        self._new_log = new_log
        self._new_replay = new_replay
        self._in_thread = in_thread
        self._on_note = on_note
        self._log = new_log()
        self._using_log = asyncio.Lock()
        self._seeds = Seeds.drawn()
        self._closed_lanes: set[int] = set()
        self._replay: Replay | None = None
        self._remembering: asyncio.Task[None] | None = None
        self._knows_past = self._went_ahead = self._is_taken = False
        self._unsaved: list[Entry] = []
        self._writing: list[Entry] = []

    # Its past

    async def open(self) -> None:
        """Learn from the journal what there is. Raises DigestConflict, StoreError; then it begins anew.

        One that has a past is taken from whoever else is writing it. A new one is not taken before there is something
        to write: a request that is refused leaves the name to others.
        """
        async with self._using_log:
            past = await self._in_thread(self._take_past)
            assert isinstance(past, _Past)
            if not self._went_ahead:
                self._adopt(past)
            elif past.replay is not None:
                past.replay.close()

    def go_ahead(self) -> None:
        """It does not wait for the journal any longer. If there is a past, it is too late for it."""
        self._went_ahead = True

    def _heard(self) -> None:
        self.answers_heard += 1

    def _take_past(self) -> _Past:
        for _ in range(_MOST_RIVALS):
            log, replay = self._new_log(), self._new_replay()
            try:
                found = log.open(replay, self._heard)
                if found is None:
                    replay.close()
                    return _Past(log, self._seeds)
                log.take(found.secret)
                return _Past(log, Seeds(found.secret), replay, found.closed_lanes)
            except EpochLost:
                replay.close()
            except BaseException:
                replay.close()
                raise
        raise StoreError("other servers took the job again and again")

    def _adopt(self, past: _Past) -> None:
        self._log, self._seeds, self._replay = past.log, past.seeds, past.replay
        self._closed_lanes |= past.closed_lanes
        self._knows_past = True
        if past.replay is not None:
            self._is_taken = self.is_stored = True
            finished, unfinished, tokens = past.replay.counts()
            counts = {"finished": finished, "unfinished": unfinished, "tokens": tokens}
            extra = {"action": "job_resumed", "job": self.label, **counts}
            logger.info("a job goes on: %d sequences finished, %d begun", finished, unfinished, extra=extra)

    async def remember(self) -> None:
        """For a request that comes later than others: what they have had already."""
        if self._remembering is None and self._replay is None:
            try:
                self._replay = self._new_replay()
            except OutOfSpace as error:
                self._forget_all(error)
                return
            self._put([*self._writing, *self._unsaved])
            self._remembering = asyncio.create_task(self._load(self._replay))
        if self._remembering is not None:
            await asyncio.shield(self._remembering)

    async def _load(self, replay: Replay) -> None:
        if self.is_stored:
            try:
                found = await self._in_thread(lambda: self._new_log().open(replay))
                if isinstance(found, Found) and found.secret != self._seeds.secret:
                    self._forget_all("another server has begun the job anew")
            except (StoreError, OutOfSpace) as error:
                logger.warning("what is journalled can't be read, and may be generated again: %s", error)

    # Its present

    @property
    def label(self) -> str:
        """As logs tell it."""
        return self.name or f"sha256:{self.digest[:16]}"

    def lease(self) -> Lease:
        lanes = {lease.lane for lease in self.leases} | self._closed_lanes
        lane = SHARED_LANE if self.name is not None else next(n for n in range(1, len(lanes) + 2) if n not in lanes)
        lease = Lease(self, lane)
        self.leases.add(lease)
        return lease

    def seeds(self, lane: int) -> Seeds:
        return Seeds(self._seeds.secret, lane)

    def saved(self, key: TrackKey) -> Saved | None:
        try:
            return None if self._replay is None else self._replay.get(key)
        except OutOfSpace as error:
            self._forget_all(error)
            return None

    def begin(self, track: Track) -> None:
        self.tracks[track.key] = track
        track.start()

    def end(self, track: Track) -> None:
        """It has ended by itself, or nobody waits for it."""
        if self.tracks.get(track.key) is track:
            del self.tracks[track.key]
            self._note_track(track)

    def freeze(self) -> None:
        """Nothing more is generated, whoever waits for it."""
        for track in list(self.tracks.values()):
            track.withdraw()
            self.end(track)

    def release(self, lease: Lease, *, is_complete: bool) -> None:
        self.leases.discard(lease)
        self.was_left |= not is_complete
        if is_complete and lease.has_drawn and lease.lane != SHARED_LANE:
            self._unsaved = [entry for entry in self._unsaved if entry.lane != lease.lane]
            self._note(LaneClosed(lease.lane))
            self._closed_lanes.add(lease.lane)

    # Its journal

    def _note_track(self, track: Track) -> None:
        if (record := track.new_record()) is not None:
            self._note(record)

    def _note(self, entry: Entry) -> None:
        self._put([entry])
        if self.is_given_up:
            return
        self._unsaved.append(entry)
        size = _size(entry)
        self.unsaved_bytes += size
        self._on_note(size)

    def _put(self, entries: list[Entry]) -> None:
        """So that it can be had again, by another request."""
        try:
            if self._replay is not None:
                self._replay.put(entries)
        except OutOfSpace as error:
            self._forget_all(error)

    def _forget_all(self, cause: OutOfSpace | str) -> None:
        logger.warning("what is journalled is of no use, and may be generated again: %s", cause)
        if self._replay is not None:
            self._replay.close()
            self._replay = None

    @property
    def has_unsaved(self) -> bool:
        return bool(self._unsaved or self._writing)

    @property
    def is_worth_saving(self) -> bool:
        """What no request has left is answered before it is ever written, if it takes no time."""
        return self.name is not None or self.is_stored or self.was_left

    async def save(self) -> int:
        """All that was generated until now is in the journal, durably: how many bytes that took. Raises StoreError."""
        async with self._using_log:
            for track in self.tracks.values():
                self._note_track(track)
            if self.is_given_up or not self._unsaved:
                return 0
            self._writing, self._unsaved = self._unsaved, []
            try:
                written = await self._in_thread(self._write)
            except (EpochLost, DigestConflict, JournalFull) as error:
                self.give_up(str(error) or _LOST[type(error)])
                return 0
            except BaseException as error:
                self._unsaved = self._writing + self._unsaved
                if isinstance(error, JournalGone):
                    self._begin_again()
                raise
            finally:
                self._writing = []
                self.unsaved_bytes = sum(map(_size, self._unsaved))
            self.is_stored = True
            assert isinstance(written, int)
            return written

    def _begin_again(self) -> None:
        """Somebody has deleted the journal: a new one has at least all of what is at work."""
        self._is_taken = self._knows_past = False
        for track in self.tracks.values():
            track.kept_tokens = 0

    def _write(self) -> int:
        if not self._is_taken:
            # Whether there is a past is asked again where the answer never came, and then it is too late for it.
            if not self._knows_past:
                self._forget_past()
            self._log.take(self._seeds.secret, fresh=not self._knows_past)
            self._is_taken = True
        return self._log.append(self._writing)

    def _forget_past(self) -> None:
        try:
            replay = self._new_replay()
            try:
                self._log = self._new_log()
                self._log.open(replay)
            finally:
                replay.close()
        except OutOfSpace as error:
            raise StoreError(str(error)) from error

    def give_up(self, reason: str) -> None:
        """It goes on without a journal."""
        self.is_given_up = True
        self._unsaved, self.unsaved_bytes = [], 0
        logger.warning("a job is no longer journalled: %s", reason, extra={"action": "job_lost", "job": self.label})

    def close(self) -> None:
        """For a worker thread: frees its memory of the past."""
        if self._replay is not None:
            self._replay.close()


class Lease:
    """A request's part in a job: attached until it is released. `resumed_tokens` it did not have to wait for."""

    def __init__(self, job: Job, lane: int) -> None:
        self.job = job
        self.lane = lane
        self.resumed_tokens = 0
        self.has_drawn = False

    @property
    def seeds(self) -> Seeds:
        return self.job.seeds(self.lane)

    def generate(self, service: Service, prepared: Prepared, place: int, item: int, choice: int) -> Generation:
        """Begin the choice, join those who wait for it, or take it from the journal. End with `leave`."""
        self.has_drawn |= prepared.is_drawn
        lane = self.lane if prepared.is_drawn else SHARED_LANE
        key = TrackKey(lane, place, item, choice)
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


def _size(entry: Entry) -> int:
    if isinstance(entry, LaneClosed):
        return _ENTRY_BYTES
    return _ENTRY_BYTES + len(entry.token_ids) + sum(32 + 16 * len(score.top) for score in entry.logprobs)
