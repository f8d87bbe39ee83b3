"""The recent values of all metrics, as alarms look at them: from our own metrics, and from what users publish.

Samples are kept in buckets of ten seconds of the platform's clock, the shortest period of an alarm. Those of ordinary
resolution are in the first bucket of their minute, as CloudWatch stores them.

Kept of a metric is the last hour, so that an alarm may begin with data from before it, and of one with alarms as much
as their evaluation ranges can need. Of metrics without alarms there are 10,000, those that came last.
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from itertools import chain
from math import floor, ulp
from typing import Any

from endpoint.alarms.statistics import Samples
from endpoint.settings import Settings

BUCKET_S = 10
"""Seconds of the platform's clock that a bucket has."""
MINUTE = 60 // BUCKET_S
"""Buckets of a minute."""

KEPT_BUCKETS = 3600 // BUCKET_S
"""Buckets kept of any metric."""
_MAX_METRICS = 10_000
_MAX_AGE_S = 14 * 86400.0
_MAX_AHEAD_S = 7200.0
"""Wall-clock seconds that PutMetricData's timestamps may lie in the past and ahead."""
_MAX_VALUE = 2.0**360
"""Greatest value that CloudWatch takes, on either side of zero."""

Metric = tuple[str, str, frozenset[tuple[str, str]]]
"""Namespace, name, and the names and values of all dimensions."""

Row = tuple[str, str, float, str]
"""Row of the database for a bucket: metric and samples as JSON, the unit between them, and the middle's time."""

_LOG = logging.getLogger(__name__)


def metric_of(parameters: Mapping[str, Any], namespace: str | None = None) -> Metric:
    """Return the metric that parameters with Namespace, MetricName and Dimensions name."""
    dimensions = frozenset((each["Name"], each["Value"]) for each in parameters.get("Dimensions") or ())
    return namespace or parameters["Namespace"], parameters["MetricName"], dimensions


class _Buckets:
    """Samples of one metric in one unit."""

    __slots__ = ("by_index", "order")

    def __init__(self) -> None:
        self.by_index: dict[int, Samples] = {}
        self.order: list[int] = []

    def get(self, index: int) -> Samples:
        samples = self.by_index.get(index)
        if samples is None:
            samples = self.by_index[index] = Samples()
            insort(self.order, index)
        return samples

    def drop_before(self, index: int) -> list[int]:
        cut = bisect_left(self.order, index)
        dropped, self.order = self.order[:cut], self.order[cut:]
        for each in dropped:
            del self.by_index[each]
        return dropped


class Series:
    """Owns the samples. All of it is for the event loop's thread."""

    def __init__(self, settings: Settings) -> None:
        self._bucket_s = settings.real_s(BUCKET_S)
        self._watched: dict[Metric, dict[str, _Buckets]] = {}
        self._others: dict[Metric, dict[str, _Buckets]] = {}
        self._kept: Mapping[Metric, int] = {}
        """Buckets to keep of each metric that has alarms."""
        self._changed: set[tuple[Metric, str, int]] = set()
        self._dropped: set[tuple[Metric, str, int]] = set()
        self._stale: list[Row] = []
        """Rows of another time scale, which are written anew."""
        self._is_full = False

    def index(self, at: float) -> int:
        """Return the number of the bucket that a time is in."""
        quotient = at / self._bucket_s
        return floor(quotient + 4 * ulp(quotient))  # a bucket begins in itself, however it is rounded

    def time(self, index: int) -> float:
        """Return the time at which a bucket begins, in seconds since the epoch."""
        return index * self._bucket_s

    # In

    def put(self, parameters: Mapping[str, Any], now: float) -> None:
        """Take the parsed parameters of a PutMetricData. Never raises for data that CloudWatch wouldn't take."""
        namespace = parameters.get("Namespace")
        lists = [parameters.get("MetricData"), *(e.get("MetricData") for e in parameters.get("EntityMetricData") or ())]
        if namespace:
            self.record(namespace, list(chain.from_iterable(filter(None, lists))), now)

    def record(self, namespace: str, data: Iterable[Mapping[str, Any]], now: float) -> None:
        """Take data in the form of PutMetricData's MetricData; those out of the kept range count for nothing."""
        for datum in data:
            at = datum.get("Timestamp", now)
            if not now - _MAX_AGE_S <= at <= now + _MAX_AHEAD_S:
                continue
            metric = metric_of(datum, namespace)
            index = self.index(at)
            if datum.get("StorageResolution") != 1:
                index -= index % MINUTE
            if index < self.index(now) - self._kept.get(metric, KEPT_BUCKETS):
                continue
            unit = datum.get("Unit", "None")
            samples = _samples_of(datum)
            if samples.count == 0:
                continue
            self._buckets(metric, unit).get(index).merge(samples)
            if metric in self._kept:
                self._changed.add((metric, unit, index))

    def _buckets(self, metric: Metric, unit: str) -> _Buckets:
        units = self._watched.get(metric)
        if units is None and metric in self._kept:
            units = self._watched[metric] = {}
        elif units is None:
            units = self._others.pop(metric, {})
            self._others[metric] = units  # behind those that have waited longer
            if len(self._others) > _MAX_METRICS:
                del self._others[next(iter(self._others))]
                if not self._is_full:
                    _LOG.warning("More than %d metrics without alarms: only the newest are kept", _MAX_METRICS)
                self._is_full = True
        return units.setdefault(unit, _Buckets())

    # Out

    def periods(self, metric: Metric, unit: str | None, *, end: int, periods: int, width: int) -> list[list[Samples]]:
        """Return the samples of `periods` periods of `width` buckets, the oldest first, up to the bucket before `end`.

        Without a unit, those of all units count together.
        """
        found: list[list[Samples]] = [[] for _ in range(periods)]
        units = self._watched.get(metric) or self._others.get(metric)
        if not units:
            return found
        start = end - periods * width
        for name, buckets in units.items():
            if unit is not None and unit != name:
                continue
            order = buckets.order
            for position in range(bisect_left(order, start), bisect_left(order, end)):
                index = order[position]
                found[(index - start) // width].append(buckets.by_index[index])
        return found

    # What is kept

    def watch(self, kept: Mapping[Metric, int]) -> None:
        """Say which metrics have alarms, and how many buckets of each these can need."""
        for metric in self._kept.keys() - kept.keys():
            units = self._watched.pop(metric, None)
            if units is not None:
                self._others[metric] = units
                self._dropped |= {(metric, unit, index) for unit in units for index in units[unit].order}
        for metric in kept.keys() - self._kept.keys():
            units = self._others.pop(metric, None)
            if units is not None:
                self._watched[metric] = units
                self._changed |= {(metric, unit, index) for unit in units for index in units[unit].order}
        self._kept = dict(kept)

    def trim(self, now: float) -> None:
        """Forget what nothing can need any more."""
        current = self.index(now)
        for group in (self._watched, self._others):
            for metric, units in list(group.items()):
                first = current - self._kept.get(metric, KEPT_BUCKETS)
                for unit, buckets in list(units.items()):
                    dropped = buckets.drop_before(first)
                    if group is self._watched:
                        self._dropped |= {(metric, unit, index) for index in dropped}
                    if not buckets.order:
                        del units[unit]
                if not units:
                    del group[metric]

    # For the next gateway

    def take_changes(self) -> tuple[list[Row], list[Row]]:
        """Return the rows to write and those to delete since the last call, of metrics that have alarms."""
        changed, dropped = self._changed - self._dropped, self._dropped
        self._changed, self._dropped = set(), set()
        stale, self._stale = self._stale, []
        rows = [self._row(*key) for key in changed]
        return [row for row in rows if row is not None], [*stale, *(self._key(*key) for key in dropped)]

    def restore(self, rows: Iterable[tuple[str, str, float, str]], now: float) -> None:
        """Take what an earlier gateway wrote; its time scale may have been another."""
        for text, unit, middle, samples in rows:
            namespace, name, dimensions = json.loads(text)
            metric = namespace, name, frozenset((key, value) for key, value in dimensions)
            index = self.index(middle)
            if index >= self.index(now) - self._kept.get(metric, KEPT_BUCKETS):
                self._buckets(metric, unit).get(index).merge(_load(samples))
                if self._key(metric, unit, index)[2] != middle:
                    self._stale.append((text, unit, middle, ""))
                    self._changed.add((metric, unit, index))
            else:
                self._stale.append((text, unit, middle, ""))

    def _row(self, metric: Metric, unit: str, index: int) -> Row | None:
        buckets = self._watched.get(metric, {}).get(unit)
        samples = buckets.by_index.get(index) if buckets else None
        return (*self._key(metric, unit, index)[:3], _dump(samples)) if samples else None

    def _key(self, metric: Metric, unit: str, index: int) -> Row:
        namespace, name, dimensions = metric
        return json.dumps([namespace, name, sorted(dimensions)]), unit, (index + 0.5) * self._bucket_s, ""


def _samples_of(datum: Mapping[str, Any]) -> Samples:
    """Return what a datum says, without values that CloudWatch wouldn't take."""
    samples = Samples()
    if datum.get("StatisticValues") is not None:
        known = datum["StatisticValues"]
        numbers = [known.get(name, 0.0) for name in ("SampleCount", "Sum", "Minimum", "Maximum")]
        if all(map(_is_value, numbers)) and abs(numbers[1]) <= _MAX_VALUE * numbers[0] > 0:
            samples.add_set(*numbers)
        return samples
    values = datum["Values"] if datum.get("Values") is not None else [datum.get("Value")]
    counts = datum.get("Counts") or [1.0] * len(values)
    for value, times in zip(values, counts, strict=False):
        if value is not None and _is_value(value) and _is_value(times) and times > 0:
            samples.add(float(value), float(times))
    return samples


def _is_value(number: float) -> bool:
    return abs(number) <= _MAX_VALUE


def _dump(samples: Samples) -> str:
    return json.dumps(
        [samples.count, samples.total, samples.least, samples.most, samples.is_complete, list(samples.values.items())]
    )


def _load(text: str) -> Samples:
    count, total, least, most, is_complete, values = json.loads(text)
    return Samples(count, total, least, most, {value: times for value, times in values}, is_complete)
