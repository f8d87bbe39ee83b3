"""The platform's side of a simulation: metrics each minute, alarms and decisions by the endpoint's own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from endpoint.alarms.judge import State, evaluation_range, judge
from endpoint.autoscaling.decisions import (
    Cooldown,
    Policy,
    Target,
    Trigger,
    abandoned,
    decide,
    fulfilled,
    within_bounds,
)
from endpoint.cloudwatch.metrics import GAUGES, gauge_values

from .policies import PolicyAlarm, PolicySet

MINUTE_S = 60

Values = tuple[float | None, ...]

_STATISTICS: Mapping[str, Callable[[list[float]], float]] = {
    "Average": fmean,
    "Minimum": min,
    "Maximum": max,
    "Sum": sum,
}


@dataclass(slots=True)
class _Judged:
    """An alarm with its state."""

    alarm: PolicyAlarm
    minutes: int
    """Number of minutes that are looked at."""
    state: State = "INSUFFICIENT_DATA"
    known: dict[tuple[Values, State], State] = field(default_factory=dict)
    """States that were judged before: most minutes are like others."""


@dataclass(slots=True)
class Scaler:
    """Owns the metrics, the alarms' states and the cooldowns of one endpoint. Times are seconds of the simulation."""

    policies: PolicySet
    min_capacity: int = 0
    max_capacity: int = 0
    _series: dict[str, list[float | None]] = field(default_factory=dict)
    """Values of each metric, one a minute, behind `_empty` minutes before the first."""
    _empty: int = 0
    _alarms: list[_Judged] = field(default_factory=list)
    _cooldowns: Mapping[str, Cooldown] = field(default_factory=dict)
    _asking: Policy | None = None
    """The policy whose change is under way."""

    def __post_init__(self) -> None:
        self.min_capacity, self.max_capacity = self.policies.min_capacity, self.policies.max_capacity
        for each in self.policies.alarms:
            periods = evaluation_range(each.alarm.rule, each.alarm.period_s)
            self._alarms.append(_Judged(each, periods * each.alarm.period_s // MINUTE_S))
        self._empty = max((judged.minutes for judged in self._alarms), default=0)
        self._series = {name: [None] * self._empty for name in GAUGES}

    def publish(self, backlog: int, instances: int, age_s: float) -> None:
        """Add a minute to the metrics, as the endpoint publishes them."""
        values = gauge_values(backlog, age_s, instances)
        for name, series in self._series.items():
            series.append(values.get(name))

    def evaluate(self, now: float, visible: int, desired: int, running: int, is_scalable: bool) -> int | None:
        """Judge the alarms and return the capacity to ask for, or None. Alarms see the first `visible` minutes."""
        triggers = [trigger for each in self._alarms if (trigger := self._judge(each, visible)) is not None]
        if not triggers:
            return None
        target = self._target(desired, running, is_scalable)
        decision = decide(target, triggers, self._cooldowns, now)
        self._cooldowns = decision.cooldowns
        if decision.capacity is not None and decision.trigger is not None:
            self._asking = decision.trigger.policy
        return decision.capacity

    def set_bounds(self, min_capacity: int | None, max_capacity: int | None) -> None:
        """Change the bounds as a scheduled action does; nothing if they would cross."""
        low = self.min_capacity if min_capacity is None else min_capacity
        high = self.max_capacity if max_capacity is None else max_capacity
        if low <= high:
            self.min_capacity, self.max_capacity = low, high

    def within_bounds(self, now: float, desired: int) -> int | None:
        """Return the capacity to ask for because the bounds have changed, or None."""
        capacity = within_bounds(self._target(desired, desired, True))
        if capacity == desired:
            return None
        if self._asking is not None:
            self._cooldowns = abandoned(self._asking.name, self._cooldowns, now)
            self._asking = None
        return capacity

    def note_fulfilled(self, now: float) -> None:
        """Note that the change under way is complete: the cooldown of its policy begins."""
        if self._asking is not None:
            self._cooldowns = fulfilled(self._asking, self._cooldowns, now)
            self._asking = None

    def _target(self, desired: int, running: int, is_scalable: bool) -> Target:
        return Target(
            min_capacity=self.min_capacity,
            max_capacity=self.max_capacity,
            desired=desired,
            running=running,
            is_scalable=is_scalable,
            policies=self.policies.policies,
        )

    def _judge(self, judged: _Judged, visible: int) -> Trigger | None:
        alarm = judged.alarm.alarm
        values = self._window(judged, visible)
        state = judged.known.get((values, judged.state))
        if state is None:
            state = judged.known[values, judged.state] = judge(values, alarm.rule, judged.state)
        judged.state = state
        if state != "ALARM":
            return None
        real = [value for value in values if value is not None][-alarm.rule.periods :]
        return Trigger(
            policy=judged.alarm.policy,
            alarm=alarm.name,
            values=tuple(real),
            threshold=alarm.rule.threshold,
            is_above=judged.alarm.is_above,
        )

    def _window(self, judged: _Judged, visible: int) -> Values:
        """Return the statistics of the last periods, the oldest first. They end with the last whole minute.

        What isn't visible yet is missing, as on AWS.
        """
        series = self._series[judged.alarm.metric]
        end, seen = len(series), min(self._empty + visible, len(series))
        window = series[end - judged.minutes : seen]
        window += [None] * (end - seen)
        per_period = judged.alarm.alarm.period_s // MINUTE_S
        if per_period == 1:
            return tuple(window)
        statistic = _STATISTICS[judged.alarm.alarm.statistic]
        periods = [window[start : start + per_period] for start in range(0, len(window), per_period)]
        real = [[value for value in period if value is not None] for period in periods]
        return tuple(statistic(period) if period else None for period in real)
