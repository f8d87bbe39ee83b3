"""Why an alarm is in its state: StateReason and StateReasonData, in CloudWatch's words. Pure.

The words are those of published answers of CloudWatch. An alarm with DatapointsToAlarm has the longer form, "1 out of
the last 3 datapoints […] was …", one without it the shorter, "1 datapoint […] was …".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from endpoint.alarms.alarm import Alarm
from endpoint.alarms.judge import State
from endpoint.alarms.times import iso, java_double, short

MAX_REASON = 1023
MAX_REASON_DATA = 4000
"""Characters that StateReason and StateReasonData have at most."""

_WORDS = {
    "GreaterThanThreshold": "greater than",
    "GreaterThanOrEqualToThreshold": "greater than or equal to",
    "LessThanThreshold": "less than",
    "LessThanOrEqualToThreshold": "less than or equal to",
}
_TREATED = {"breaching": "Breaching", "notBreaching": "NonBreaching"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One period of the evaluation range."""

    at: float
    """Time at which the period begins, in seconds since the epoch."""
    value: float | None
    """Its statistic; None without data."""
    samples: float = 0.0


def recent(points: Sequence[Point], periods: int) -> list[Point]:
    """Return the range from the oldest to the newest of the last `periods` periods with data; gaps are in it."""
    real = [position for position, point in enumerate(points) if point.value is not None][-periods:]
    return list(points[real[0] : real[-1] + 1]) if real else []


def explain(alarm: Alarm, state: State, points: Sequence[Point], now: float) -> tuple[str, str]:
    """Return StateReason and StateReasonData of an alarm that `points`, the oldest first, have brought to `state`."""
    rule = alarm.rule
    considered = recent(points, rule.periods)
    real = [point for point in considered if point.value is not None]
    enough = rule.datapoints if state == "ALARM" else rule.periods - rule.datapoints + 1
    is_alarm = state == "ALARM"
    matching = [each for each in reversed(real) if rule.is_breached_by(each.value or 0.0) == is_alarm][:enough]
    gaps = [point for point in reversed(points) if point.value is None]
    wanted = rule.periods if not real else max(enough - len(matching), 0)
    evaluated = sorted([*matching, *gaps[:wanted]], key=lambda point: -point.at)
    if state == "INSUFFICIENT_DATA":
        missing = rule.periods - len(real)
        reason = f"Insufficient Data: {_count(missing, 'datapoint')} {_were(missing)} unknown."
    elif not real:
        missing_points = _count(rule.periods, "missing datapoint")
        treated = f"{_were(rule.periods)} treated as [{_TREATED.get(rule.missing, rule.missing)}]"
        reason = (
            f"Threshold Crossed: no datapoints were received for {_count(rule.periods, 'period')}"
            f" and {missing_points} {treated}."
        )
    else:
        reason = _crossed(alarm, state, matching, rule.periods - len(real), enough)
    return reason[:MAX_REASON], _data(alarm, considered, evaluated, now)


def _crossed(alarm: Alarm, state: State, matching: Sequence[Point], missing: int, enough: int) -> str:
    """Say which datapoints were beyond the threshold, or weren't."""
    rule = alarm.rule
    clauses = []
    is_long = "DatapointsToAlarm" in alarm.configuration
    if matching:
        values = ", ".join(f"{java_double(point.value or 0.0)} ({short(point.at)})" for point in matching)
        count = len(matching)
        subject = f"{count} out of the last {rule.periods} datapoints" if is_long else _count(count, "datapoint")
        negation = "" if state == "ALARM" else "not "
        clauses.append(
            f"{subject} [{values}] {_were(count)} {negation}{_WORDS[rule.comparison]}"
            f" the threshold ({java_double(rule.threshold)})"
        )
    if missing and rule.missing in _TREATED:
        treated = f"{_were(missing)} treated as [{_TREATED[rule.missing]}]"
        clauses.append(f"{_count(missing, 'missing datapoint')} {treated}")
    transition = "OK -> ALARM" if state == "ALARM" else "ALARM -> OK"
    ending = f" (minimum {_count(enough, 'datapoint')} for {transition} transition)" if is_long else ""
    return f"Threshold Crossed: {' and '.join(clauses)}{ending}."


def _data(alarm: Alarm, considered: Sequence[Point], evaluated: Sequence[Point], now: float) -> str:
    configuration = alarm.configuration
    data: dict[str, Any] = {"version": "1.0", "queryDate": iso(now)}
    if considered:
        data["startDate"] = iso(considered[0].at)
    if "Unit" in configuration:
        data["unit"] = configuration["Unit"]
    data |= {
        "statistic": alarm.statistic,
        "period": alarm.period_s,
        "recentDatapoints": [point.value for point in considered],
        "threshold": float(alarm.rule.threshold),
        "evaluatedDatapoints": [
            {"timestamp": iso(point.at)}
            | ({} if point.value is None else {"sampleCount": point.samples, "value": point.value})
            for point in evaluated
        ],
    }
    left = MAX_REASON_DATA - len(compact(data | {"evaluatedDatapoints": []}))
    shown: list[dict[str, Any]] = []
    for point in data["evaluatedDatapoints"]:  # the recent ones are what scaling needs: they stay
        left -= len(compact(point)) + (1 if shown else 0)
        if left < 0:
            break
        shown.append(point)
    return compact(data | {"evaluatedDatapoints": shown})


def compact(value: Any) -> str:
    """Print JSON as CloudWatch does, without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"
