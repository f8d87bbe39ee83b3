"""Judges a metric alarm: from the values of its last periods to its state. Pure: no clock, no storage.

The rules give every row of the table in AWS's guide, "Configuring how CloudWatch alarms treat missing data".
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["OK", "ALARM", "INSUFFICIENT_DATA"]
Comparison = Literal[
    "GreaterThanThreshold", "GreaterThanOrEqualToThreshold", "LessThanThreshold", "LessThanOrEqualToThreshold"
]
MissingData = Literal["missing", "ignore", "breaching", "notBreaching"]

_COMPARE: dict[Comparison, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
    "LessThanThreshold": operator.lt,
    "LessThanOrEqualToThreshold": operator.le,
}
_SPARE_PERIODS = 2
_SPARE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The part of a configuration that decides the state: ALARM with `datapoints` breaching of `periods` periods."""

    comparison: Comparison
    threshold: float
    periods: int
    """EvaluationPeriods, N."""
    datapoints: int
    """DatapointsToAlarm, M; at most N."""
    missing: MissingData = "missing"

    def is_breached_by(self, value: float) -> bool:
        return _COMPARE[self.comparison](value, self.threshold)


def evaluation_range(rule: Rule, period_s: float) -> int:
    """Return the number of periods whose values `judge` wants: more than N, so that late data are seen.

    `period_s` is the alarm's Period as it was given, not divided by a time scale.
    """
    return rule.periods + (_SPARE_PERIODS if period_s >= _SPARE_S else round(_SPARE_S / period_s))


def judge(values: Sequence[float | None], rule: Rule, state: State) -> State:
    """Return the state of an alarm that was in `state`.

    `values` holds the statistic of each period of the evaluation range, the oldest first; None where there are no data.
    """
    real = [(age, value) for age, value in enumerate(reversed(values), 1) if value is not None][: rule.periods]
    breaching = [age for age, value in real if rule.is_breached_by(value)]
    good = len(real) - len(breaching)
    missing = rule.periods - len(real)
    if len(breaching) >= rule.datapoints:
        return "ALARM"
    if good > rule.periods - rule.datapoints:
        return "OK"
    match rule.missing:
        case "breaching":
            return "ALARM" if len(breaching) + missing >= rule.datapoints else "OK"
        case "notBreaching":
            return "OK"
        case "ignore":
            return "OK" if good else state
        case "missing" if not real:
            return "INSUFFICIENT_DATA"
        case "missing" if good:
            return "OK"
        case _:  # Only breaching ones, too few. An alarm that fired now might be premature: the rest may come late.
            return "ALARM" if breaching[-1] >= rule.datapoints else "INSUFFICIENT_DATA"
