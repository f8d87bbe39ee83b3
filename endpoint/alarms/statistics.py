"""Statistics of a metric's samples: the five of CloudWatch, and its percentiles, trimmed and winsorized means.

CloudWatch documents what they mean, but not how it gets a percentile of few samples. Here it is the smallest sample
that at least that share of the samples doesn't exceed, and a range of percentages takes parts of the samples at its
ends: TM(25%:75%) of the samples 1, 2 and 3 has 2 whole and a quarter of each of the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from math import inf

Statistic = Callable[[Sequence["Samples"]], float | None]
"""Function of a period's samples, which are in one or more parts. None: it has no value."""

_MAX_VALUES = 1000
"""Different values kept of a part; those of more are rounded to three digits, then to two, then to one."""

_NUMBER = r"-?\d+(?:\.\d+)?"
_SHORT = re.compile(r"(p|tm|wm|tc|ts)(\d{1,3}(?:\.\d{1,10})?)")
_RANGE = re.compile(rf"(TM|WM|TC|TS|PR)\(({_NUMBER}%?)?:({_NUMBER}%?)?\)")


@dataclass(slots=True)
class Samples:
    """Samples of one metric in a stretch of time."""

    count: float = 0.0
    total: float = 0.0
    least: float = inf
    most: float = -inf
    values: dict[float, float] = field(default_factory=dict)
    """Number of times that each value came."""
    is_complete: bool = True
    """Whether `values` has all samples; if not, a statistic set came, of whose samples only the sum is known."""
    digits: int = 17
    """Significant digits that `values` keeps."""

    def add(self, value: float, times: float = 1.0) -> None:
        self.count += times
        self.total += value * times
        self.least = min(self.least, value)
        self.most = max(self.most, value)
        self._add_value(value, times)

    def add_set(self, count: float, total: float, least: float, most: float) -> None:
        """Add samples of which these four are known. They are told apart only if they can't differ."""
        self.count += count
        self.total += total
        self.least = min(self.least, least)
        self.most = max(self.most, most)
        if least == most or count == 1:
            self._add_value(total / count, count)
        else:
            self.is_complete = False

    def merge(self, other: Samples) -> None:
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)
        self.is_complete &= other.is_complete
        for value, times in other.values.items():
            self._add_value(value, times)

    def _add_value(self, value: float, times: float) -> None:
        if self.digits < 17:
            value = _round(value, self.digits)
        self.values[value] = self.values.get(value, 0.0) + times
        while len(self.values) > _MAX_VALUES and self.digits > 1:
            self.digits = min(self.digits - 1, 3)
            coarse: dict[float, float] = {}
            for each, count in self.values.items():
                rounded = _round(each, self.digits)
                coarse[rounded] = coarse.get(rounded, 0.0) + count
            self.values = coarse


def parse_statistic(name: str) -> Statistic:
    """Return the function of a Statistic or an ExtendedStatistic, by CloudWatch's name. Raises ValueError."""
    if name in _SIMPLE:
        return _SIMPLE[name]
    return _parse_extended(name)


def sample_count(parts: Iterable[Samples]) -> float:
    return sum(part.count for part in parts)


def percentile_of(name: str) -> float | None:
    """Return the share, from 0 to 1, that the name of a percentile has; None for another statistic."""
    match = _SHORT.fullmatch(name)
    return float(match[2]) / 100 if match and match[1] == "p" else None


@cache
def _parse_extended(name: str) -> Statistic:
    low, high = -inf, inf
    if name == "IQM":
        return partial(_of_ranks, _mean, 0.25, 0.75)
    if match := _SHORT.fullmatch(name):
        kind, share = match[1], float(match[2]) / 100
        if share > 1:
            raise ValueError(name)
        if kind == "p":
            return partial(_percentile, share)
        return partial(_winsorized_ranks, 0.0, share) if kind == "wm" else partial(_of_ranks, _KINDS[kind], 0.0, share)
    match = _RANGE.fullmatch(name)
    bounds = [bound for bound in match.groups()[1:] if bound] if match else []
    if match is None or not bounds or len({bound.endswith("%") for bound in bounds}) > 1:
        raise ValueError(name)
    kind = match[1].lower()
    if bounds[0].endswith("%"):
        low = float(match[2].rstrip("%")) / 100 if match[2] else 0.0
        high = float(match[3].rstrip("%")) / 100 if match[3] else 1.0
        if kind == "pr" or not 0 <= low < high <= 1:
            raise ValueError(name)
        return partial(_winsorized_ranks, low, high) if kind == "wm" else partial(_of_ranks, _KINDS[kind], low, high)
    low = float(match[2]) if match[2] else low
    high = float(match[3]) if match[3] else high
    if low >= high:
        raise ValueError(name)
    if kind == "wm":
        return partial(_winsorized_values, low, high)
    return partial(_percentile_rank if kind == "pr" else partial(_of_values, _KINDS[kind]), low, high)


# The five

_SIMPLE: dict[str, Statistic] = {
    "SampleCount": sample_count,
    "Sum": lambda parts: sum(part.total for part in parts),
    "Average": lambda parts: _divide(sum(part.total for part in parts), sample_count(parts)),
    "Minimum": lambda parts: min(part.least for part in parts),
    "Maximum": lambda parts: max(part.most for part in parts),
}


def _divide(total: float, count: float) -> float | None:
    return total / count if count else None


# The extended ones, over pairs of a value and the number of its samples, which may be a fraction

_Weighted = list[tuple[float, float]]


def _mean(chosen: _Weighted) -> float | None:
    return _divide(_sum(chosen), _count(chosen))


def _sum(chosen: _Weighted) -> float:
    return sum(value * weight for value, weight in chosen)


def _count(chosen: _Weighted) -> float:
    return sum(weight for _, weight in chosen)


_KINDS: dict[str, Callable[[_Weighted], float | None]] = {"tm": _mean, "tc": _count, "ts": _sum}


def _sorted(parts: Sequence[Samples]) -> _Weighted | None:
    """Return the values in order with their counts; None if they aren't all known, as percentiles need."""
    if not all(part.is_complete for part in parts):
        return None
    counts: dict[float, float] = {}
    for part in parts:
        for value, times in part.values.items():
            counts[value] = counts.get(value, 0.0) + times
    return sorted((value, times) for value, times in counts.items() if times > 0)


def _percentile(share: float, parts: Sequence[Samples]) -> float | None:
    values = _sorted(parts)
    return _at_rank(values, share) if values else None


def _at_rank(values: _Weighted, share: float) -> float:
    wanted = share * _count(values) * (1 - 1e-12)  # 0.9 of 10 samples are 9, whatever the last bit says
    rank = 0.0
    for value, times in values:
        rank += times
        if rank >= wanted:
            return value
    return values[-1][0]


def _of_ranks(
    compute: Callable[[_Weighted], float | None], low: float, high: float, parts: Sequence[Samples]
) -> float | None:
    values = _sorted(parts)
    return compute(_between(values, low, high)) if values else None


def _between(values: _Weighted, low: float, high: float) -> _Weighted:
    """Return the values from one share of the samples to another, those at the ends with less of their weight."""
    count = _count(values)
    chosen, rank = [], 0.0
    for value, times in values:
        weight = min(rank + times, high * count) - max(rank, low * count)
        rank += times
        if weight > 1e-9 * count:
            chosen.append((value, weight))
    return chosen


def _of_values(
    compute: Callable[[_Weighted], float | None], low: float, high: float, parts: Sequence[Samples]
) -> float | None:
    values = _sorted(parts)
    return compute([each for each in values if low < each[0] <= high]) if values else None


def _winsorized_ranks(low: float, high: float, parts: Sequence[Samples]) -> float | None:
    values = _sorted(parts)
    if not values:
        return None
    chosen = _between(values, low, high)
    return _clamped(values, chosen[0][0], chosen[-1][0]) if chosen else None


def _winsorized_values(low: float, high: float, parts: Sequence[Samples]) -> float | None:
    values = _sorted(parts)
    return _clamped(values, low, high) if values else None


def _clamped(values: _Weighted, low: float, high: float) -> float | None:
    return _mean([(min(max(value, low), high), times) for value, times in values])


def _percentile_rank(low: float, high: float, parts: Sequence[Samples]) -> float | None:
    values = _sorted(parts)
    if not values:
        return None
    return 100 * _count([each for each in values if low < each[0] <= high]) / _count(values)


def _round(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
