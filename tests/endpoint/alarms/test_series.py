from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from endpoint.alarms.series import KEPT_BUCKETS, MINUTE, Series, metric_of
from endpoint.alarms.statistics import parse_statistic
from endpoint.settings import Settings

NOW = 1_789_364_430.0  # half a minute past one
SCALES = [1.0, 60.0, 4.0]
METRIC = {"Namespace": "N", "MetricName": "m"}


def make_series(time_scale: float = 1.0) -> Series:
    return Series(Settings(data_dir=Path("/nowhere"), time_scale=time_scale))


def put(series: Series, *data: dict[str, Any], now: float = NOW, namespace: str = "N") -> None:
    series.put({"Namespace": namespace, "MetricData": [{"MetricName": "m"} | datum for datum in data]}, now)


def read(
    series: Series,
    statistic: str = "Sum",
    *,
    at: float = NOW + 60,
    periods: int = 3,
    width: int = MINUTE,
    unit: str | None = None,
    dimensions: dict[str, str] | None = None,
) -> list[float | None]:
    """The statistic of the last whole periods before `at`."""
    pairs = [{"Name": name, "Value": value} for name, value in (dimensions or {}).items()]
    end = series.index(at)
    if width >= MINUTE:
        end -= end % MINUTE
    found = series.periods(metric_of(METRIC | {"Dimensions": pairs}), unit, end=end, periods=periods, width=width)
    return [parse_statistic(statistic)(parts) if parts else None for parts in found]


@pytest.mark.parametrize("time_scale", SCALES)
def test_values_fall_into_scaled_minutes(time_scale: float) -> None:
    series = make_series(time_scale)
    minute_s = 60 / time_scale
    start = series.time(series.index(NOW) // MINUTE * MINUTE)
    for number in range(3):
        put(series, {"Value": float(number), "Timestamp": start + (number + 0.5) * minute_s}, now=start + 3 * minute_s)
    assert read(series, at=start + 3.01 * minute_s, periods=4) == [None, 0, 1, 2]


@pytest.mark.parametrize(
    ("datum", "expected"),
    [
        ({"Value": 4.0}, (1, 4)),
        ({"Values": [1.0, 2.0]}, (2, 3)),
        ({"Values": [1.0, 2.0], "Counts": [3.0, 1.0]}, (4, 5)),
        ({"StatisticValues": {"SampleCount": 5.0, "Sum": 10.0, "Minimum": 1.0, "Maximum": 4.0}}, (5, 10)),
    ],
    ids=["Value", "Values", "Values and Counts", "StatisticValues"],
)
def test_every_form_of_datum_counts(datum: dict[str, Any], expected: tuple[float, float]) -> None:
    series = make_series()
    put(series, datum)
    assert (read(series, "SampleCount")[-1], read(series, "Sum")[-1]) == expected


@pytest.mark.parametrize(
    "datum",
    [
        pytest.param({"Value": float("nan")}, id="not a number"),
        pytest.param({"Value": -1e109}, id="too far below zero"),
        pytest.param({"Values": [1.0], "Counts": [0.0]}, id="no times"),
        pytest.param({"Values": [1.0], "Counts": [float("inf")]}, id="infinitely often"),
        pytest.param({"Value": 1.0, "Timestamp": float("nan")}, id="never"),
        pytest.param({}, id="empty"),
        pytest.param({"StatisticValues": {"SampleCount": 0.0}}, id="empty set"),
        pytest.param({"StatisticValues": {"SampleCount": 1e-300, "Sum": 1e100}}, id="mean of a set beyond all values"),
        pytest.param({"Value": 1.0, "Timestamp": NOW - 15 * 86400}, id="too old"),
        pytest.param({"Value": 1.0, "Timestamp": NOW + 7300}, id="too far ahead"),
    ],
)
def test_datum_without_meaning_counts_for_nothing(datum: dict[str, Any]) -> None:
    series = make_series()
    put(series, datum)
    assert set(read(series, "SampleCount", periods=60)) == {None}


def test_dimensions_count_exactly_as_a_set() -> None:
    series = make_series()
    pairs = [{"Name": "A", "Value": "1"}, {"Name": "B", "Value": "2"}]
    put(series, {"Value": 1.0, "Dimensions": pairs}, {"Value": 2.0, "Dimensions": pairs[::-1]}, {"Value": 4.0})
    assert read(series, dimensions={"B": "2", "A": "1"})[-1] == 3
    assert read(series)[-1] == 4
    assert read(series, dimensions={"A": "1"}) == [None] * 3


def test_namespaces_are_told_apart() -> None:
    series = make_series()
    put(series, {"Value": 1.0}, namespace="Other")
    assert read(series) == [None] * 3


def test_units_count_apart_or_together() -> None:
    series = make_series()
    put(series, {"Value": 1.0, "Unit": "Count"}, {"Value": 2.0, "Unit": "Seconds"}, {"Value": 4.0})
    found = {unit: read(series, unit=unit)[-1] for unit in ("Count", "Seconds", "None", "Bytes", None)}
    assert found == {"Count": 1, "Seconds": 2, "None": 4, "Bytes": None, None: 7}


def test_only_high_resolution_fills_short_periods() -> None:
    series = make_series()
    put(series, {"Value": 1.0}, {"Value": 2.0, "StorageResolution": 1})
    assert read(series, at=NOW + 10, periods=4, width=1) == [1, None, None, 2]
    assert read(series, periods=1) == [3]


def test_data_of_entities_count() -> None:
    series = make_series()
    series.put({"Namespace": "N", "EntityMetricData": [{"MetricData": [{"MetricName": "m", "Value": 5.0}]}]}, NOW)
    assert read(series)[-1] == 5


def test_nothing_is_kept_beyond_need() -> None:
    series = make_series()
    for minute in range(120):
        put(series, {"Value": 1.0, "Timestamp": NOW - 60 * minute})
    assert read(series, "SampleCount", periods=120).count(1) == 60
    series.trim(NOW + 3570)
    assert read(series, periods=120).count(1) == 1
    series.trim(NOW + 7300)
    assert read(series, at=NOW, periods=120) == [None] * 120


def test_alarm_keeps_its_longer_range() -> None:
    series = make_series()
    series.watch({metric_of(METRIC): 2 * KEPT_BUCKETS})
    put(series, {"Value": 1.0, "Timestamp": NOW - 7000})
    assert read(series, periods=120).count(1) == 1


def test_metrics_without_alarms_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("endpoint.alarms.series._MAX_METRICS", 2)
    series = make_series()
    for number in range(4):
        put(series, {"Value": 1.0, "Dimensions": [{"Name": "D", "Value": str(number)}]})
    assert [read(series, dimensions={"D": str(number)})[-1] for number in range(4)] == [None, None, 1, 1]


@pytest.mark.parametrize("next_scale", SCALES)
def test_next_gateway_has_alarms_values(next_scale: float) -> None:
    first, metric = make_series(), metric_of(METRIC)
    put(first, {"Values": [1.0, 2.0], "Counts": [1.0, 3.0]}, {"Value": 8.0, "Timestamp": NOW - 1})
    first.watch({metric: KEPT_BUCKETS})
    changed, dropped = first.take_changes()
    assert len(changed) == 1 and dropped == [] and first.take_changes() == ([], [])
    second = make_series(next_scale)
    second.watch({metric: 60 * KEPT_BUCKETS})
    second.restore(changed, NOW)
    at = NOW + 61
    for name in ("SampleCount", "Sum", "Minimum", "Maximum", "p75"):
        expected = parse_statistic(name)([*first.periods(metric, None, end=first.index(at), periods=1, width=60)[0]])
        index = second.index(at)
        assert parse_statistic(name)(second.periods(metric, None, end=index, periods=1, width=6000)[0]) == expected
    rewritten, stale = second.take_changes()
    assert (len(rewritten), len(stale)) == ((0, 0) if next_scale == 1 else (1, 1))


def test_values_without_alarm_are_not_written() -> None:
    series, metric = make_series(), metric_of(METRIC)
    put(series, {"Value": 1.0})
    assert series.take_changes() == ([], [])
    series.watch({metric: KEPT_BUCKETS})
    (row,), _ = series.take_changes()
    series.watch({})
    assert series.take_changes() == ([], [(*row[:3], "")])
    assert read(series)[-1] == 1
