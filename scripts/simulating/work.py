"""Requests on instances: first in, first out, each instance with its places. The quick core of the simulation."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from math import inf

_SHIFT = 32
"""Bits of an instance's number in a key of the heap of free places, below its load."""
_MASK = (1 << _SHIFT) - 1
_MAX_KEYS_PER_INSTANCE = 64


class Work:
    """Owns requests and instances. Times are seconds of the simulation, which `advance` moves on.

    A request goes to the instance with the fewest requests that has room. What an ended instance leaves unfinished
    keeps its place in the queue.
    """

    def __init__(
        self, arrivals: Sequence[float], services: Sequence[float], concurrency: int, slowdown: float, has_journal: bool
    ) -> None:
        count = len(arrivals)
        self.arrivals = arrivals
        self.waited = array("d", bytes(8 * count))
        """Seconds that each request spent otherwise than in work that counts."""
        self.served = array("b", bytes(count))
        """Number of times that each request was served: 1 in the end, 0 if it expired."""
        self.interruptions = 0
        """Requests whose instance was ended while it worked on them."""
        self.lost_s = 0.0
        """Seconds of work that were done in vain."""
        self.expired = 0
        self.finished = 0
        """Requests that were served or have expired."""
        self.last_end_s = 0.0
        self._services = services
        self._concurrency = concurrency
        self._slowdown = slowdown
        self._has_journal = has_journal
        self._arrived = 0
        self._next = 0
        """Number of the first request that was never started."""
        self._resumed: list[int] = []
        """Heap of the requests that go on as soon as there is a place: all older than `_next`."""
        self._since: dict[int, float] = {}
        """Times since which interrupted requests wait."""
        self._left: dict[int, float] = {}
        """Seconds of service that interrupted requests still need."""
        self._ends: list[tuple[float, int, int, float]] = []
        """Heap of time, request, instance and start of what is being worked on."""
        self._loads: list[int] = []
        """Requests on each instance, by its number; -1 where it has ended or isn't up yet."""
        self._free: list[int] = []
        """Heap of load and number of instances with room; entries whose load is no longer right are passed over."""
        self._oldest = 0

    @property
    def waiting(self) -> int:
        return self._arrived - self._next + len(self._resumed)

    @property
    def in_flight(self) -> int:
        return self._arrived - self.finished - self.waiting

    @property
    def next_arrival_s(self) -> float:
        return self.arrivals[self._arrived] if self._arrived < len(self.arrivals) else inf

    def oldest_age_s(self, now: float) -> float:
        """Return for how long the oldest request that isn't done has been there."""
        while self._oldest < self._arrived and self.is_done(self._oldest):
            self._oldest += 1
        return now - self.arrivals[self._oldest] if self._oldest < self._arrived else 0.0

    def is_done(self, request: int) -> bool:
        return self.served[request] != 0

    # Instances

    def add_instance(self) -> int:
        """Return the number of a new instance, which isn't up yet."""
        self._loads.append(-1)
        return len(self._loads) - 1

    def open_instance(self, instance: int, now: float) -> None:
        """Let an instance work."""
        self._loads[instance] = 0
        heappush(self._free, instance)
        self._fill(now)

    def load_of(self, instance: int) -> int:
        return self._loads[instance]

    def end_instance(self, instance: int, now: float) -> None:
        """End an instance. Its requests wait again: with a journal for the rest of their work, else for all of it."""
        self._loads[instance] = -1
        unfinished = [end for end in self._ends if end[2] == instance]
        if unfinished:
            self._ends = [end for end in self._ends if end[2] != instance]
            heapify(self._ends)
        for end_s, request, _, started_s in unfinished:
            left_s = self._left.get(request, self._services[request])
            if self._has_journal:
                self._left[request] = left_s * (end_s - now) / (end_s - started_s)
            else:
                self._left[request] = left_s
                self.waited[request] += now - started_s
                self.lost_s += now - started_s
            self._since[request] = now
            self.interruptions += 1
            heappush(self._resumed, request)
        self._fill(now)

    # Requests

    def advance(self, until: float) -> None:
        """Let requests arrive, start and end, up to and with the time `until`."""
        ends, arrivals = self._ends, self.arrivals
        while True:
            arrival_s = arrivals[self._arrived] if self._arrived < len(arrivals) else inf
            end_s = ends[0][0] if ends else inf
            if min(arrival_s, end_s) > until or arrival_s == end_s == inf:
                return
            if end_s <= arrival_s:
                self._end_first()
            else:
                self._arrived += 1
                if self.waiting == 1:
                    instance = self._free_instance()
                    if instance is not None:
                        self._start(instance, arrival_s)

    def expire(self, now: float, ttl_s: float) -> None:
        """End requests that have waited for longer than `ttl_s`; work on them doesn't count as waiting."""
        while self._next < self._arrived and now - self.arrivals[self._next] > ttl_s:
            self._note_expired(self._next, ttl_s)
            self._next += 1
        late = [each for each in self._resumed if self.waited[each] + now - self._since[each] > ttl_s]
        if late:
            self._resumed = sorted(set(self._resumed) - set(late))
            for request in late:
                self._note_expired(request, ttl_s)

    def _note_expired(self, request: int, ttl_s: float) -> None:
        self.waited[request] = ttl_s
        self.served[request] = -1
        self.expired += 1
        self.finished += 1

    def _end_first(self) -> None:
        end_s, request, instance, _ = heappop(self._ends)
        self.served[request] += 1
        self.finished += 1
        self.last_end_s = end_s
        load = self._loads[instance] = self._loads[instance] - 1
        if self._resumed or self._next < self._arrived:
            self._start(instance, end_s)
        else:
            heappush(self._free, load << _SHIFT | instance)
            if len(self._free) > _MAX_KEYS_PER_INSTANCE * len(self._loads):
                self._rebuild_free()

    def _start(self, instance: int, now: float) -> None:
        """Start the first request that waits on an instance with room."""
        if self._resumed:
            request = heappop(self._resumed)
            service_s = self._left[request]
            self.waited[request] += now - self._since.pop(request)
        else:
            request = self._next
            self._next += 1
            service_s = self._services[request]
            self.waited[request] = now - self.arrivals[request]
        load = self._loads[instance] = self._loads[instance] + 1
        heappush(self._ends, (now + service_s * (1 + self._slowdown * (load - 1)), request, instance, now))
        if load < self._concurrency:
            heappush(self._free, load << _SHIFT | instance)

    def _fill(self, now: float) -> None:
        while self.waiting and (instance := self._free_instance()) is not None:
            self._start(instance, now)

    def _free_instance(self) -> int | None:
        """Take the instance with the fewest requests, if one has room."""
        free, loads = self._free, self._loads
        while free:
            key = heappop(free)
            instance = key & _MASK
            if loads[instance] == key >> _SHIFT:
                return instance
        return None

    def _rebuild_free(self) -> None:
        room = [load << _SHIFT | instance for instance, load in enumerate(self._loads) if 0 <= load < self._concurrency]
        heapify(room)
        self._free = room
