from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.alarms.judge import MissingData, Rule, State, evaluation_range, judge

MARKS = {"-": None, "0": 0.0, "X": 10.0}
TREATMENTS: tuple[MissingData, ...] = get_args(MissingData)
STATES: tuple[State, ...] = get_args(State)

# Number, M/N, marks (newest right), and the states for missing, ignore, breaching, notBreaching; "kept" is the old one.
ROWS = [
    (1, "3/3", "0 - X - X", ("OK", "OK", "OK", "OK")),
    (2, "3/3", "0 - - - -", ("OK", "OK", "OK", "OK")),
    (3, "3/3", "- - - - -", ("INSUFFICIENT_DATA", "kept", "ALARM", "OK")),
    (4, "3/3", "0 X X - X", ("ALARM", "ALARM", "ALARM", "ALARM")),
    (5, "3/3", "- - X - -", ("ALARM", "kept", "ALARM", "OK")),
    (6, "2/3", "0 - X - X", ("ALARM", "ALARM", "ALARM", "ALARM")),
    (7, "2/3", "0 0 X 0 X", ("ALARM", "ALARM", "ALARM", "ALARM")),
    (8, "2/3", "0 - X - -", ("OK", "OK", "ALARM", "OK")),
    (9, "2/3", "- - - - 0", ("OK", "OK", "ALARM", "OK")),
    (10, "2/3", "- - - X -", ("ALARM", "kept", "ALARM", "OK")),
]
PREMATURE = [("- - - - X", "INSUFFICIENT_DATA"), ("- - - X -", "INSUFFICIENT_DATA")]
RECOVERED = [("- - - X 0", "OK"), ("- - X - 0", "OK")]


def a_rule(m_of_n: str = "3/3", missing: MissingData = "missing") -> Rule:
    datapoints, periods = map(int, m_of_n.split("/"))
    return Rule(comparison="GreaterThanThreshold", threshold=5, periods=periods, datapoints=datapoints, missing=missing)


def values(marks: str) -> list[float | None]:
    return [MARKS[mark] for mark in marks.split()]


def cases() -> list[object]:
    return [
        pytest.param(m_of_n, marks, missing, expected, id=f"row {number}, {m_of_n}: {marks}, {missing}: {expected}")
        for number, m_of_n, marks, states in ROWS
        for missing, expected in zip(("missing", "ignore", "breaching", "notBreaching"), states, strict=True)
    ]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("m_of_n", "marks", "missing", "expected"), cases())
def test_documented_row_gives_its_state(
    m_of_n: str, marks: str, missing: MissingData, expected: str, state: State
) -> None:
    assert judge(values(marks), a_rule(m_of_n, missing), state) == (state if expected == "kept" else expected)


@pytest.mark.parametrize(("marks", "expected"), PREMATURE, ids=[f"row 11: {marks}" for marks, _ in PREMATURE])
def test_young_breach_alone_alarms_not_yet(marks: str, expected: State) -> None:
    assert judge(values(marks), a_rule(), "OK") == expected


@pytest.mark.parametrize(("marks", "expected"), RECOVERED, ids=[f"row 12: {marks}" for marks, _ in RECOVERED])
def test_good_newest_point_is_ok(marks: str, expected: State) -> None:
    assert judge(values(marks), a_rule(), "ALARM") == expected


@pytest.mark.parametrize(
    ("comparison", "breaching"),
    [
        ("GreaterThanThreshold", [6]),
        ("GreaterThanOrEqualToThreshold", [5, 6]),
        ("LessThanThreshold", [4]),
        ("LessThanOrEqualToThreshold", [4, 5]),
    ],
)
def test_comparison_includes_threshold_by_name(comparison: str, breaching: list[int]) -> None:
    rule = Rule(comparison=comparison, threshold=5, periods=1, datapoints=1)  # type: ignore[arg-type]
    assert [value for value in (4, 5, 6) if judge([value], rule, "INSUFFICIENT_DATA") == "ALARM"] == breaching


@pytest.mark.parametrize(
    ("periods", "period_s", "expected"),
    [(3, 60, 5), (15, 60, 17), (1, 3600, 3), (3, 10, 9), (3, 20, 6), (3, 30, 5)],
    ids=["3 x 60 s", "15 x 60 s", "1 x 1 h", "3 x 10 s", "3 x 20 s", "3 x 30 s"],
)
def test_range_has_room_for_late_data(periods: int, period_s: int, expected: int) -> None:
    rule = Rule(comparison="GreaterThanThreshold", threshold=0, periods=periods, datapoints=periods)
    assert evaluation_range(rule, period_s) == expected


@st.composite
def looks(draw: st.DrawFn) -> tuple[list[float | None], Rule, State]:
    periods = draw(st.integers(1, 6))
    rule = Rule(
        comparison="GreaterThanThreshold",
        threshold=5,
        periods=periods,
        datapoints=draw(st.integers(1, periods)),
        missing=draw(st.sampled_from(TREATMENTS)),
    )
    slots = draw(st.lists(st.sampled_from([None, 0.0, 10.0]), min_size=periods + 2, max_size=periods + 2))
    return slots, rule, draw(st.sampled_from(STATES))


@given(looks())
def test_enough_breaching_points_always_alarm(look: tuple[list[float | None], Rule, State]) -> None:
    slots, rule, state = look
    newest = [value for value in slots if value is not None][-rule.periods :]
    if newest.count(10.0) >= rule.datapoints:
        assert judge(slots, rule, state) == "ALARM"


@given(looks())
def test_full_range_ignores_old_state(look: tuple[list[float | None], Rule, State]) -> None:
    slots, rule, _ = look
    full = [value or 0.0 for value in slots]
    assert len({judge(full, rule, state) for state in STATES}) == 1
    assert judge(full, rule, "OK") != "INSUFFICIENT_DATA"


@given(looks())
def test_good_points_never_start_an_alarm(look: tuple[list[float | None], Rule, State]) -> None:
    slots, rule, state = look
    good = [None if value is None else 0.0 for value in slots]
    if rule.missing != "breaching" and state != "ALARM":
        assert judge(good, rule, state) != "ALARM"


@given(looks())
def test_judging_again_changes_nothing(look: tuple[list[float | None], Rule, State]) -> None:
    slots, rule, state = look
    first = judge(slots, rule, state)
    assert judge(slots, rule, first) == first


@given(looks())
def test_silence_never_keeps_good_state_unless_told(look: tuple[list[float | None], Rule, State]) -> None:
    slots, rule, state = look
    silent: list[float | None] = [None] * len(slots)
    expected = {"missing": "INSUFFICIENT_DATA", "ignore": state, "breaching": "ALARM", "notBreaching": "OK"}
    assert judge(silent, rule, state) == expected[rule.missing]
