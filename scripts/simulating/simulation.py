"""The simulation of one workload under one set of policies: events in the order of their times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import Literal

import numpy as np

from .inputs import Inputs
from .policies import PolicySet
from .scaler import MINUTE_S, Scaler
from .schedules import Schedule, schedules_of
from .work import Work
from .workload import Floats, Workload

EventKind = Literal["sample", "evaluate", "up", "settle", "schedule"]
_ORDER: Sequence[EventKind] = ("up", "settle", "sample", "schedule", "evaluate")
_PROGRESS_EVERY_MINUTES = 30


@dataclass(slots=True)
class Instance:
    """An instance's life in seconds of the simulation. `paid_from_s` is when its machine is there."""

    paid_from_s: float
    up_at_s: float
    ended_at_s: float = inf

    def paid_s(self, end_s: float) -> float:
        return max(min(self.ended_at_s, end_s) - self.paid_from_s, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A capacity that was asked for."""

    at_s: float
    before: int
    after: int
    cause: Literal["policy", "schedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of a workload."""

    name: str
    waiting_s: Floats
    """Seconds that each request waited, in the order of arrival: all of its time but the work that counted."""
    served: int
    times_served: bytes
    """Number of times that each request was served: 1, or 255 if it expired."""
    unanswered: int
    """Requests that waited longer than their TTL, and expired."""
    interruptions: int
    lost_s: float
    """Seconds of work that were done in vain because an instance ended."""
    instances: tuple[Instance, ...]
    changes: tuple[Change, ...]
    end_s: float
    """Time at which the last request was done, or the workload's end if that is later."""

    @property
    def requests(self) -> int:
        return len(self.waiting_s)

    @property
    def instance_s(self) -> float:
        return sum(instance.paid_s(self.end_s) for instance in self.instances)

    @property
    def peak_instances(self) -> int:
        """Return the most instances that there were at once, those that start included."""
        return max([sum(each.paid_from_s == 0.0 for each in self.instances), *(each.after for each in self.changes)])

    def percentile_s(self, percent: float) -> float:
        return float(np.percentile(self.waiting_s, percent)) if len(self.waiting_s) else 0.0

    def usd(self, usd_per_hour: float) -> float:
        return self.instance_s / 3600 * usd_per_hour

    def serving_at(self, times_s: Floats) -> Floats:
        """Return the number of instances that serve at each time."""
        ups = np.sort([each.up_at_s for each in self.instances])
        downs = np.sort([max(each.ended_at_s, each.up_at_s) for each in self.instances])
        up = np.searchsorted(ups, times_s, side="right") - np.searchsorted(downs, times_s, side="right")
        return up.astype(np.float64)


@dataclass(slots=True)
class Simulation:
    """Owns the clock, the queue of events and the instances."""

    workload: Workload
    inputs: Inputs
    policies: PolicySet
    on_progress: Callable[[float], None] = lambda share: None
    """Function that is told the share of the workload's time that is simulated."""
    name: str = "policies"
    _events: list[tuple[float, int, EventKind, int]] = field(default_factory=list)
    _instances: list[Instance] = field(default_factory=list)
    _alive: list[int] = field(default_factory=list)
    """Numbers of the instances that were asked for and haven't ended."""
    _changes: list[Change] = field(default_factory=list)
    _desired: int = 0
    _settles_at_s: float = -inf
    """Time at which the endpoint is InService again."""
    _minutes: int = 0
    _schedules: tuple[Schedule, ...] = ()
    _work: Work = field(init=False)
    _scaler: Scaler = field(init=False)

    def run(self) -> Outcome:
        inputs = self.inputs
        self._work = Work(
            self.workload.arrivals_s.tolist(),
            self.workload.service_s.tolist(),
            inputs.concurrency,
            inputs.slowdown,
            inputs.has_journal,
        )
        self._scaler = Scaler(self.policies)
        self._begin()
        now = 0.0
        while not self._is_over(now):
            now, _, kind, number = heappop(self._events)
            self._work.advance(now)
            self._act(now, kind, number)
        return self._outcome()

    def _is_over(self, now: float) -> bool:
        """Tell whether the workload's time is over and all requests are done."""
        return now >= self.workload.duration_s and self._work.finished == len(self.workload)

    def _begin(self) -> None:
        policies = self.policies
        count = min(max(self.inputs.initial_instances, policies.min_capacity), policies.max_capacity)
        for _ in range(count):
            number = self._add(Instance(paid_from_s=0.0, up_at_s=0.0))
            self._work.open_instance(number, 0.0)
        self._desired = count
        self._push(MINUTE_S, "sample")
        self._push(MINUTE_S + self.inputs.platform.evaluation_offset_s, "evaluate")
        self._schedules = schedules_of(policies)
        for index, schedule in enumerate(self._schedules):
            self._push_schedule(index, schedule, -1.0)

    def _act(self, now: float, kind: EventKind, number: int) -> None:
        match kind:
            case "up":
                if number in self._alive:
                    self._work.open_instance(number, now)
            case "settle":
                if now >= self._settles_at_s:
                    self._scaler.note_fulfilled(now)
            case "sample":
                self._sample(now)
            case "evaluate":
                self._evaluate(now)
            case "schedule":
                self._run_schedule(now, number)

    # The platform's minute

    def _sample(self, now: float) -> None:
        work = self._work
        work.expire(now, self.inputs.platform.ttl_s)
        self._scaler.publish(work.waiting + work.in_flight, self._serving(now), work.oldest_age_s(now))
        self._minutes += 1
        self._push(now + MINUTE_S, "sample")
        if self._minutes % _PROGRESS_EVERY_MINUTES == 0:
            self.on_progress(min(now / self.workload.duration_s, 1.0))

    def _evaluate(self, now: float) -> None:
        visible = int((now - self.inputs.platform.metric_delay_s) // MINUTE_S)
        is_scalable = now >= self._settles_at_s
        if is_scalable:
            self._obey_bounds(now)
        running, is_scalable = self._serving(now), now >= self._settles_at_s
        capacity = self._scaler.evaluate(now, visible, self._desired, running, is_scalable)
        if capacity is not None:
            self._set_desired(now, capacity, "policy")
        self._push(now + MINUTE_S, "evaluate")

    def _run_schedule(self, now: float, index: int) -> None:
        schedule = self._schedules[index]
        self._scaler.set_bounds(schedule.min_capacity, schedule.max_capacity)
        if now >= self._settles_at_s:
            self._obey_bounds(now)
        self._push_schedule(index, schedule, now)

    def _obey_bounds(self, now: float) -> None:
        """Bring the capacity within the bounds, which a scheduled action may have changed while it was not scalable."""
        capacity = self._scaler.within_bounds(now, self._desired)
        if capacity is not None:
            self._set_desired(now, capacity, "schedule")

    def _push_schedule(self, index: int, schedule: Schedule, after_s: float) -> None:
        at_s = schedule.next_s(after_s)
        if at_s is not None:
            self._push(at_s, "schedule", index)

    # Instances

    def _set_desired(self, now: float, capacity: int, cause: Literal["policy", "schedule"]) -> None:
        if capacity == self._desired:
            return
        self._changes.append(Change(at_s=now, before=self._desired, after=capacity, cause=cause))
        cold, takes_s = self.inputs.cold_start, self.inputs.platform.scale_in_s
        if capacity > self._desired:
            takes_s = cold.total_s
            for _ in range(capacity - self._desired):
                number = self._add(Instance(paid_from_s=now + cold.provisioning_s, up_at_s=now + takes_s))
                self._push(now + takes_s, "up", number)
        for number in sorted(self._alive, key=self._need)[: max(self._desired - capacity, 0)]:
            self._alive.remove(number)
            self._instances[number].ended_at_s = now
            self._work.end_instance(number, now)
        self._desired = capacity
        self._settles_at_s = now + takes_s
        self._push(self._settles_at_s, "settle")

    def _need(self, number: int) -> tuple[int, int]:
        """Return the order in which instances are ended: the least busy first, the youngest of these."""
        return self._work.load_of(number), -number

    def _add(self, instance: Instance) -> int:
        self._instances.append(instance)
        number = self._work.add_instance()
        self._alive.append(number)
        return number

    def _serving(self, now: float) -> int:
        return sum(self._instances[number].up_at_s <= now for number in self._alive)

    def _push(self, at_s: float, kind: EventKind, number: int = 0) -> None:
        heappush(self._events, (at_s, _ORDER.index(kind), kind, number))

    def _outcome(self) -> Outcome:
        work = self._work
        return Outcome(
            name=self.name,
            waiting_s=np.frombuffer(work.waited, dtype=np.float64) if len(work.waited) else np.zeros(0),
            served=work.finished - work.expired,
            times_served=work.served.tobytes(),
            unanswered=work.expired,
            interruptions=work.interruptions,
            lost_s=work.lost_s,
            instances=tuple(self._instances),
            changes=tuple(self._changes),
            end_s=max(self.workload.duration_s, work.last_end_s),
        )


def simulate(
    workload: Workload,
    inputs: Inputs,
    policies: PolicySet,
    name: str = "policies",
    on_progress: Callable[[float], None] = lambda share: None,
) -> Outcome:
    """Simulate to the end of the workload's time and of its last request."""
    return Simulation(workload=workload, inputs=inputs, policies=policies, on_progress=on_progress, name=name).run()
