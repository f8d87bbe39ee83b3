from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.alarms.statistics import Samples, parse_statistic, percentile_of

TEN = list(range(1, 11))


def samples(*values: float) -> Samples:
    collected = Samples()
    for value in values:
        collected.add(value)
    return collected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SampleCount", 10),
        ("Sum", 55),
        ("Average", 5.5),
        ("Minimum", 1),
        ("Maximum", 10),
        ("p0", 1),
        ("p50", 5),
        ("p90", 9),
        ("p99.9", 10),
        ("p100", 10),
        ("tm90", 5),
        ("tc90", 9),
        ("ts90", 45),
        ("wm90", (45 + 9) / 10),
        ("IQM", 5.5),
        ("TM(10%:90%)", 5.5),
        ("TM(:50%)", 3),
        ("TM(80%:)", 9.5),
        ("TM(2:4)", 3.5),
        ("TC(10%:90%)", 8),
        ("TC(2:4)", 2),
        ("TS(10%:90%)", 44),
        ("TS(8:)", 19),
        ("WM(20%:80%)", (2 * 3 + 3 + 4 + 5 + 6 + 7 + 8 * 3) / 10),
        ("WM(4:6)", (4 * 4 + 5 + 6 * 5) / 10),
        ("PR(:3)", 30),
        ("PR(3:5)", 20),
        ("PR(9.5:)", 10),
    ],
)
def test_statistic_of_one_to_ten(name: str, expected: float) -> None:
    assert parse_statistic(name)([samples(*TEN)]) == pytest.approx(expected)


@pytest.mark.parametrize(
    "name",
    [
        *("", "p", "p101", "p-1", "P90", "tm", "tm101", "IQR", "Median", "average", "p99 ", "TM(10%)", "TM(:)"),
        *("TM(10%:90)", "TM(90%:10%)", "TM(0%:101%)", "PR(10%:90%)", "PR(5:5)"),
    ],
)
def test_unknown_statistic_is_refused(name: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse_statistic(name)
    assert str(refusal.value) == name


@pytest.mark.parametrize("name", ["tm0", "wm0", "WM(0%:0.0000000001%)"])
def test_mean_of_no_samples_is_none(name: str) -> None:
    assert parse_statistic(name)([samples(*TEN)]) is None


def test_statistic_sets_count_without_percentiles() -> None:
    collected = samples(5)
    collected.add_set(10, 100, 1, 50)
    parts = [collected]
    found = {name: parse_statistic(name)(parts) for name in ("SampleCount", "Sum", "Minimum", "Maximum", "p50", "tm90")}
    assert found == {"SampleCount": 11, "Sum": 105, "Minimum": 1, "Maximum": 50, "p50": None, "tm90": None}


@pytest.mark.parametrize(("count", "total", "least", "most"), [(1, 7, 7, 7), (4, 28, 7, 7)], ids=["one", "all equal"])
def test_statistic_set_of_equals_has_percentiles(count: float, total: float, least: float, most: float) -> None:
    collected = Samples()
    collected.add_set(count, total, least, most)
    assert parse_statistic("p99")([collected]) == 7


def test_percentile_has_its_share() -> None:
    assert (percentile_of("p99.9"), percentile_of("tm90"), percentile_of("Average")) == (
        pytest.approx(0.999),
        None,
        None,
    )


def test_many_different_values_stay_bounded() -> None:
    collected = Samples()
    for number in range(30_000):
        collected.add(1 + number / 7)
    assert len(collected.values) <= 1000 and collected.count == 30_000
    assert parse_statistic("p50")([collected]) == pytest.approx(1 + 15_000 / 7, rel=0.06)
    assert parse_statistic("Maximum")([collected]) == 1 + 29_999 / 7


numbers = st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=40)


@given(numbers, st.integers(0, 40))
def test_parts_count_as_their_whole(values: list[float], cut: int) -> None:
    whole, parts = [samples(*values)], [samples(*values[:cut]), samples(*values[cut:])]
    real = [part for part in parts if part.count]
    merged = samples(*values[:cut])
    merged.merge(samples(*values[cut:]))
    for name in ("SampleCount", "Sum", "Average", "Minimum", "Maximum", "p37", "IQM", "WM(10%:90%)", "PR(0:)"):
        compute = parse_statistic(name)
        assert compute(real) == pytest.approx(compute(whole), rel=1e-9, abs=1e-6)
        assert compute([merged]) == pytest.approx(compute(whole), rel=1e-9, abs=1e-6)


@given(numbers, st.floats(0, 100))
def test_percentile_is_one_of_the_samples(values: list[float], share: float) -> None:
    name = f"p{share:.2f}"
    found = parse_statistic(name)([samples(*values)])
    assert found in values
    assert sum(value <= found for value in values) >= float(name[1:]) / 100 * len(values) - 1e-6
