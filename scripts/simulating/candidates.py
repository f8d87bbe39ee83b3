"""Candidates of the search for policies: what can be chosen, and the document that a choice makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from .policies import Document, alarm, step_policy, tracking_policy, wake_alarm, wake_policy


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
    office_min: int = 0
    """MinCapacity from Monday to Friday, 8 to 18 o'clock, by schedule."""
    core_min: int = 0
    """MinCapacity within these hours, from `core_from` to `core_to` o'clock, if it is more."""
    core_from: int = 9
    core_to: int = 12

    def document(self, max_capacity: int) -> Document:
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
            "PutScheduledAction": self._schedules(),
        }

    def variations(self, name: str) -> Iterator[Candidate]:
        """Yield the candidates that differ in one choice only."""
        for value in CHOICES[name]:
            if value != getattr(self, name):
                yield replace(self, **{name: value})

    def differences(self) -> dict[str, Any]:
        """Return the choices that AWS's documentation doesn't have."""
        mine = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in mine.items() if value != getattr(Candidate(), name)}

    def _schedules(self) -> list[Document]:
        """Return an action for each hour in which the minimum becomes another."""
        least = [self._min_at(hour) for hour in range(24)]
        return [
            {
                "ScheduledActionName": f"at-{hour}",
                "Schedule": f"cron(0 {hour} ? * MON-FRI *)",
                "ScalableTargetAction": {"MinCapacity": least[hour]},
            }
            for hour in range(1, 24)
            if least[hour] != least[hour - 1]
        ]

    def _min_at(self, hour: int) -> int:
        core = self.core_min if self.core_from <= hour < self.core_to else 0
        return max(self.office_min if 8 <= hour < 18 else 0, core)


CHOICES: dict[str, tuple[Any, ...]] = {
    "wake_points": (1, 2, 3),
    "wake_period_s": (60, 300),
    "wake_cooldown_s": (0, 60, 300),
    "wake_instances": (1, 2),
    "target": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0),
    "out_cooldown_s": (0, 60, 300, 600),
    "in_cooldown_s": (0, 60, 300, 600, 900),
    "burst_step": (0, 1, 2),
    "idle_minutes": (0, 2, 3, 5, 10),
    "office_min": (0, 1, 2),
    "core_min": (0, 2, 3),
    "core_from": (8, 9, 10),
    "core_to": (12, 16, 17),
}
