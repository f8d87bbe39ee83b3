from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from endpoint.alarms.alarm import Alarm, new_alarm
from endpoint.alarms.judge import State
from endpoint.alarms.reasons import Point, explain
from endpoint.alarms.times import iso, java_double, short
from testing.endpoint.alarming import parameters

ONE = {"EvaluationPeriods": 1, "DatapointsToAlarm": 1}


def at(text: str) -> float:
    return datetime.fromisoformat(f"2026-09-14T{text}+00:00").timestamp()


def an_alarm(**others: Any) -> Alarm:
    given = parameters(**{"Period": 10, "Threshold": 50.0, "Unit": "Count", "DatapointsToAlarm": 3} | others)
    given |= {"ActionsEnabled": True, "AlarmActions": [], "OKActions": [], "InsufficientDataActions": []}
    return new_alarm("arn", given, 0.0)


def points(first: str, *values: float | None) -> list[Point]:
    start = at(first)
    return [Point(at=start + 10 * place, value=value, samples=1.0) for place, value in enumerate(values)]


# What CloudWatch was seen to answer: M of N, the look, and the reason and the data of it.
SEEN = [
    pytest.param(
        {"DatapointsToAlarm": 2},
        "ALARM",
        points("05:50:50", 0, None, 100, None, 100, None),
        "2 out of the last 3 datapoints [100.0 (14/09/26 05:51:30), 100.0 (14/09/26 05:51:10)] were greater than"
        " the threshold (50.0) (minimum 2 datapoints for OK -> ALARM transition).",
        ("05:50:50", [0, None, 100, None, 100], ["05:51:30", "05:51:10"]),
        id="two of three with gaps",
    ),
    pytest.param(
        {},
        "ALARM",
        points("05:46:50", 100, None, None),
        "1 out of the last 3 datapoints [100.0 (14/09/26 05:46:50)] was greater than the threshold (50.0)"
        " (minimum 3 datapoints for OK -> ALARM transition).",
        ("05:46:50", [100], ["05:47:10", "05:47:00", "05:46:50"]),
        id="one old breach alone",
    ),
    pytest.param(
        {},
        "OK",
        points("05:42:20", 100, 0, 100, None),
        "1 out of the last 3 datapoints [0.0 (14/09/26 05:42:30)] was not greater than the threshold (50.0)"
        " (minimum 1 datapoint for ALARM -> OK transition).",
        ("05:42:20", [100, 0, 100], ["05:42:30"]),
        id="one good of three",
    ),
    pytest.param(
        {"EvaluationPeriods": 20, "DatapointsToAlarm": 1, "TreatMissingData": "notBreaching", "Threshold": 1.0},
        "ALARM",
        points("05:42:20", *[None] * 19, 613, None),
        "1 out of the last 20 datapoints [613.0 (14/09/26 05:45:30)] was greater than the threshold (1.0) and 19"
        " missing datapoints were treated as [NonBreaching] (minimum 1 datapoint for OK -> ALARM transition).",
        ("05:45:30", [613], ["05:45:30"]),
        id="missing points beside a breach",
    ),
]


@pytest.mark.parametrize(("options", "state", "look", "reason", "data"), SEEN)
def test_reason_reads_as_seen_on_aws(
    options: dict[str, Any],
    state: State,
    look: list[Point],
    reason: str,
    data: tuple[str, list[float | None], list[str]],
) -> None:
    alarm = an_alarm(**options)
    found, text = explain(alarm, state, look, at("05:52:00"))
    start, recent, evaluated = data
    assert found == f"Threshold Crossed: {reason}"
    document = json.loads(text)
    assert list(document) == [
        *("version", "queryDate", "startDate", "unit", "statistic", "period", "recentDatapoints", "threshold"),
        "evaluatedDatapoints",
    ]
    assert document["startDate"] == iso(at(start)) and document["recentDatapoints"] == recent
    assert [each["timestamp"] for each in document["evaluatedDatapoints"]] == [iso(at(time)) for time in evaluated]


@pytest.mark.parametrize(
    ("options", "state", "reason"),
    [
        ({}, "INSUFFICIENT_DATA", "Insufficient Data: 3 datapoints were unknown."),
        (
            {"EvaluationPeriods": 1, "DatapointsToAlarm": 1},
            "INSUFFICIENT_DATA",
            "Insufficient Data: 1 datapoint was unknown.",
        ),
        (
            {"TreatMissingData": "breaching"},
            "ALARM",
            "Threshold Crossed: no datapoints were received for 3 periods and 3 missing datapoints were treated as"
            " [Breaching].",
        ),
        (
            ONE | {"TreatMissingData": "notBreaching"},
            "OK",
            "Threshold Crossed: no datapoints were received for 1 period and 1 missing datapoint was treated as"
            " [NonBreaching].",
        ),
    ],
    ids=["3 unknown", "1 unknown", "breaching", "notBreaching"],
)
def test_silence_has_its_own_reason(options: dict[str, Any], state: State, reason: str) -> None:
    found, text = explain(an_alarm(**options), state, points("05:00:00", None, None, None, None, None), at("05:01:00"))
    document = json.loads(text)
    assert found == reason
    assert document["recentDatapoints"] == [] and "startDate" not in document
    assert {tuple(each) for each in document["evaluatedDatapoints"]} == {("timestamp",)}


def test_reason_without_m_is_short() -> None:
    alarm = an_alarm(DatapointsToAlarm=None, EvaluationPeriods=2, ComparisonOperator="LessThanOrEqualToThreshold")
    found, _ = explain(alarm, "ALARM", points("05:00:00", 1.5, 50), at("05:01:00"))
    assert found == (
        "Threshold Crossed: 2 datapoints [50.0 (14/09/26 05:00:10), 1.5 (14/09/26 05:00:00)] were"
        " less than or equal to the threshold (50.0)."
    )


def test_long_reasons_are_cut() -> None:
    look = points("05:00:00", *[float(number) + 100 for number in range(200)])
    reason, data = explain(an_alarm(EvaluationPeriods=200, DatapointsToAlarm=200), "ALARM", look, at("05:40:00"))
    assert len(reason) == 1023 and len(data) <= 4000
    assert len(json.loads(data)["recentDatapoints"]) == 200


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[(0, "0.0"), (1, "1.0"), (-2.5, "-2.5"), (0.001, "0.001"), (9999999, "9999999.0"), (1e7, "1.0E7")],
        *[(6e7, "6.0E7"), (12345678.9, "1.23456789E7"), (5e-4, "5.0E-4"), (-1.5e-9, "-1.5E-9"), (-2.5e300, "-2.5E300")],
    ],
)
def test_numbers_read_as_in_java(value: float, expected: str) -> None:
    assert java_double(value) == expected


def test_times_read_as_on_aws() -> None:
    moment = at("05:47:38.775")
    assert (iso(moment), short(moment)) == ("2026-09-14T05:47:38.775+0000", "14/09/26 05:47:38")
