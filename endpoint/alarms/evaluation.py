"""One look at one alarm: the values of its periods, and the state that they mean. Pure but for what `Series` holds."""

from __future__ import annotations

from collections.abc import Sequence

from endpoint.alarms.alarm import Alarm
from endpoint.alarms.judge import State, evaluation_range, judge
from endpoint.alarms.reasons import Point
from endpoint.alarms.series import BUCKET_S, MINUTE, Series
from endpoint.alarms.statistics import Samples, parse_statistic, percentile_of, sample_count

_LATE_S = 60
"""Seconds of the platform's clock by which data may come late and still be kept for their period."""


def kept_buckets(alarm: Alarm) -> int:
    """Return the buckets that an alarm's evaluation range can reach back."""
    return (evaluation_range(alarm.rule, alarm.period_s) * alarm.period_s + _LATE_S) // BUCKET_S + MINUTE


def end_of_range(alarm: Alarm, index: int) -> int:
    """Return the bucket that comes after the range; `index` is that of now. Ordinary alarms look at whole minutes."""
    return index if alarm.period_s < 60 else index - index % MINUTE


def read(alarm: Alarm, series: Series, index: int) -> list[list[Samples]]:
    """Return the samples of each period of the evaluation range, the oldest first."""
    return series.periods(
        alarm.metric,
        alarm.unit,
        end=end_of_range(alarm, index),
        periods=evaluation_range(alarm.rule, alarm.period_s),
        width=alarm.period_s // BUCKET_S,
    )


def values_of(alarm: Alarm, periods: Sequence[Sequence[Samples]]) -> list[float | None]:
    """Return the alarm's statistic of each period; None where there are no data."""
    statistic = parse_statistic(alarm.statistic)
    return [statistic(parts) if parts else None for parts in periods]


def state_of(alarm: Alarm, periods: Sequence[Sequence[Samples]], values: Sequence[float | None]) -> State:
    """Return the state that an alarm is in now."""
    if _has_too_few_samples(alarm, periods):
        return alarm.state
    return judge(values, alarm.rule, alarm.state)


def is_warming_up(alarm: Alarm, values: Sequence[float | None], now: float, real_minute_s: float) -> bool:
    """Return whether an alarm isn't to be judged yet: it is new, and has no full range of data to end that early."""
    options = alarm.configuration.get("WarmUpConfiguration")
    if options is None or now >= alarm.created_at + options["WarmUpPeriodDurationInMinutes"] * real_minute_s:
        return False
    is_filled = sum(value is not None for value in values) >= alarm.rule.periods
    return bool(options.get("OnlyStartEvaluatingAfterWarmUpPeriodEnds")) or not is_filled


def points_of(
    alarm: Alarm, series: Series, periods: Sequence[Sequence[Samples]], values: Sequence[float | None], index: int
) -> list[Point]:
    """Return the periods as a reason shows them."""
    width = alarm.period_s // BUCKET_S
    start = end_of_range(alarm, index) - len(periods) * width
    return [
        Point(at=series.time(start + place * width), value=value, samples=sample_count(parts))
        for place, (parts, value) in enumerate(zip(periods, values, strict=True))
    ]


def _has_too_few_samples(alarm: Alarm, periods: Sequence[Sequence[Samples]]) -> bool:
    """Return whether an alarm keeps its state for want of samples: fewer than ten are beyond its percentile."""
    if alarm.configuration.get("EvaluateLowSampleCountPercentile") != "ignore":
        return False
    share = percentile_of(alarm.statistic)
    tail = min(share or 0.0, 1 - (share or 0.0))
    real = [parts for parts in periods if parts][-alarm.rule.periods :]
    return bool(real) and tail > 0 and sum(map(sample_count, real)) * tail < 10 * (1 - 1e-12)
