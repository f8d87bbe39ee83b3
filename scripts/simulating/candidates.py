"""Candidates of the search for policies: what can be chosen, and the document that a choice makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .policies import Document, alarm, step_policy, tracking_policy, wake_alarm, wake_policy
from .workload import DAY_S, HOUR_S, Workload

Choices = dict[str, tuple[Any, ...]]
"""Values that a candidate's fields may have."""

Demand = tuple[float, ...]
"""Instances that each hour of a working day would keep busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A choice of each thing that the search may choose. The defaults are what AWS documents."""

    wake_points: int = 2
    """Datapoints of the wake-up alarm, all of which must breach."""
    wake_period_s: int = 60
    wake_cooldown_s: int = 300
    wake_instances: int = 1
    """Instances that the wake-up adds."""
    target: float = 5.0
    """Target of ApproximateBacklogSizePerInstance."""
    out_cooldown_s: int = 300
    in_cooldown_s: int = 300
    burst_step: int = 0
    """Instances that one minute with twice the target adds at once; 0: no such policy."""
    idle_minutes: int = 0
    """Minutes without any backlog after which capacity goes to its minimum; 0: only target tracking scales in."""
    planned_load: float = 0.0
    """MinCapacity by schedule: in each hour of a working day, as many whole instances as have this load on average of
    the same hours; 0: none."""

    def document(self, max_capacity: int, demand: Demand) -> Document:
        policies = [
            wake_policy(self.wake_cooldown_s, self.wake_instances),
            tracking_policy(self.target, in_s=self.in_cooldown_s, out_s=self.out_cooldown_s),
        ]
        alarms = [wake_alarm(self.wake_points, self.wake_points, self.wake_period_s)]
        if self.burst_step:
            policies.append(step_policy("burst", [(0.0, None, self.burst_step)], 60))
            above = "GreaterThanOrEqualToThreshold"
            alarms.append(alarm("burst", "ApproximateBacklogSizePerInstance", above, 2 * self.target, 1, 1))
        if self.idle_minutes:
            policies.append(step_policy("idle", [(None, 0.0, 0)], 60, kind="ExactCapacity"))
            below, minutes = "LessThanOrEqualToThreshold", self.idle_minutes
            alarms.append(alarm("idle", "ApproximateBacklogSize", below, 0.0, minutes, minutes))
        return {
            "RegisterScalableTarget": {"MinCapacity": 0, "MaxCapacity": max_capacity},
            "PutScalingPolicy": policies,
            "PutMetricAlarm": alarms,
            "PutScheduledAction": self._schedules(demand),
        }

    def variations(self, name: str, choices: Choices) -> Iterator[Candidate]:
        """Yield the candidates that differ in this field only."""
        for value in choices[name]:
            if value != getattr(self, name):
                yield replace(self, **{name: value})

    def differences(self) -> dict[str, Any]:
        """Return the choices that AWS's documentation doesn't have."""
        mine = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in mine.items() if value != getattr(Candidate(), name)}

    def _schedules(self, demand: Demand) -> list[Document]:
        """Return an action for each hour in which the minimum becomes another."""
        if not self.planned_load:
            return []
        least = [int(instances / self.planned_load) for instances in demand]
        return [
            {
                "ScheduledActionName": f"at-{hour}",
                "Schedule": f"cron(0 {hour} ? * MON-FRI *)",
                "ScalableTargetAction": {"MinCapacity": least[hour]},
            }
            for hour in range(24)
            if least[hour] != least[hour - 1]
        ]


def demand_of(workload: Workload, concurrency: int) -> Demand:
    """Return how many instances the work of each hour of a working day would keep busy, on average."""
    is_working_day = workload.arrivals_s // DAY_S % 7 < 5
    hours = (workload.arrivals_s[is_working_day] // HOUR_S % 24).astype(int)
    work_s = np.bincount(hours, weights=workload.service_s[is_working_day], minlength=24)
    days = sum(day % 7 < 5 for day in range(max(round(workload.duration_s / DAY_S), 1)))
    return tuple(float(each) / HOUR_S / days / concurrency for each in work_s)


def choices_for(concurrency: int) -> Choices:
    """Return what can be chosen for each field. Targets are parts and multiples of an instance's places."""
    targets = {5.0, *(round(part * concurrency, 3) for part in (0.5, 0.6, 0.7, 0.8, 1, 1.25, 2, 4))}
    return {
        "wake_points": (1, 2, 3),
        "wake_period_s": (60, 300),
        "wake_cooldown_s": (0, 60, 300),
        "wake_instances": (1, 2),
        "target": tuple(sorted(targets)),
        "out_cooldown_s": (0, 60, 300, 600),
        "in_cooldown_s": (0, 60, 300, 600, 900),
        "burst_step": (0, 1, 2),
        "idle_minutes": (0, 2, 3, 5, 10),
        "planned_load": (0.0, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 1.0),
    }
