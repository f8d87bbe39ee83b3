"""Scheduled actions by the endpoint's own code, on a clock whose time 0 is a Monday's midnight in UTC."""

from __future__ import annotations

from dataclasses import dataclass

from endpoint.autoscaling.schedules import ScheduleError, check_schedule, next_run

from .policies import PolicySet, UnusablePolicies

START = 1_767_571_200.0
"""Time 0 of the simulation in seconds since the epoch: Monday, 5 January 2026."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    expression: str
    timezone: str | None
    min_capacity: int | None
    max_capacity: int | None

    def next_s(self, after_s: float) -> float | None:
        """Return the simulation's time at which it runs next; None: never again."""
        at = next_run(self.expression, self.timezone, None, None, START + after_s)
        return None if at is None else at - START


def schedules_of(policies: PolicySet) -> tuple[Schedule, ...]:
    """Return the scheduled actions of a set. StartTime and EndTime don't count: the simulation has no date.

    Raises UnusablePolicies.
    """
    for each in policies.schedules:
        try:
            check_schedule(each["Schedule"], each.get("Timezone"))
        except ScheduleError as error:
            raise UnusablePolicies(f"{each.get('ScheduledActionName')}: {error}") from None
    return tuple(
        Schedule(
            expression=each["Schedule"],
            timezone=each.get("Timezone"),
            min_capacity=each["ScalableTargetAction"].get("MinCapacity"),
            max_capacity=each["ScalableTargetAction"].get("MaxCapacity"),
        )
        for each in policies.schedules
    )
