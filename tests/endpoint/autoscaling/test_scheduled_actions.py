"""Rows of the table of Application Auto Scaling's answers about scheduled actions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from endpoint.autoscaling.calendar import Calendar, open_calendar
from testing.endpoint.autoscaling_server import AutoscalingServer
from testing.endpoint.scaling_calls import RESOURCE, VARIANT, put_action, refusal, refused, register

INVALID = "Invalid schedule expression. Details: "
CRON = f"{INVALID}Invalid CRON expression: "
SYNTAX = (
    f"{INVALID}Schedule expressions must have the following syntax: rate(<number>\\s?(minutes?|hours?|days?)), "
    "cron(<cron_expression>) or at(yyyy-MM-dd'T'HH:mm:ss)."
)
DAY = 86400.0


def action(client: Any, name: str = "night") -> dict[str, Any]:
    found: dict[str, Any] = client.describe_scheduled_actions(**VARIANT, ScheduledActionNames=[name])[
        "ScheduledActions"
    ][0]
    return found


def next_run_at(server: AutoscalingServer, name: str = "night") -> float | None:
    kept = server.run(server.store.action(RESOURCE, name))
    assert kept is not None
    return kept.next_run_at


@pytest.fixture
def client(server: AutoscalingServer) -> Any:
    register(server.client)
    return server.client


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"ScalableTargetAction": {}},
            "At least one of minimum capacity and maximum capacity should be provided",
            id="no bound",
        ),
        pytest.param(
            {"ScalableTargetAction": {"MinCapacity": 2, "MaxCapacity": 1}},
            "Maximum capacity cannot be less than minimum capacity",
            id="maximum below minimum",
        ),
        pytest.param(
            {"ScalableTargetAction": {"MinCapacity": -1}},
            "Minimum capacity cannot be less than 0",
            id="negative minimum",
        ),
        pytest.param(
            {"ScalableTargetAction": {"MaxCapacity": -1}},
            "Maximum capacity cannot be less than 0",
            id="negative maximum",
        ),
        pytest.param(
            {"Schedule": "cron(0 1 * * * *)"},
            f"{CRON}error at position 0, details: Specifying both a day-of-week AND a day-of-month parameter is not "
            "supported.",
            id="both days",
        ),
        pytest.param(
            {"Schedule": "cron(0 1 * * *)"},
            f"{CRON}error at position 9, details: Unexpected end of expression.",
            id="five fields",
        ),
        pytest.param({"Schedule": "every day"}, SYNTAX, id="no schedule"),
        pytest.param({"Schedule": "rate(1 week)"}, SYNTAX, id="rate in weeks"),
        pytest.param({"Schedule": "at(tomorrow)"}, SYNTAX, id="at without a time"),
        pytest.param(
            {"Schedule": "at(2099-02-30T00:00:00)"},
            f'{INVALID}Invalid schedule at DateTime expression: Cannot parse "2099-02-30T00:00:00": Value 30 for '
            "dayOfMonth must be in the range [1,28]",
            id="a day that isn't",
        ),
        pytest.param(
            {"Schedule": "at(2027-03-14T02:30:00)", "Timezone": "America/New_York"},
            f'{INVALID}Invalid schedule at DateTime expression: Cannot parse "2027-03-14T02:30:00": Illegal instant '
            "due to time zone offset transition (America/New_York)",
            id="a time that clocks skip",
        ),
        pytest.param(
            {"Schedule": "at(9999-12-31T23:59:59)", "Timezone": "America/New_York"},
            f'{INVALID}Invalid schedule at DateTime expression: Cannot parse "9999-12-31T23:59:59": Instant exceeds '
            "minimum or maximum instant",
            id="a time beyond all years",
        ),
        pytest.param(
            {"Schedule": "rate(0 days)"},
            "Invalid schedule frequency. Run for '1970-01-01T00:00:00.000Z' and '1970-01-01T00:00:00.000Z' are less "
            "than 60 seconds apart",
            id="rate of zero",
        ),
        pytest.param(
            {"Schedule": "cron(0/30 * * * * ? *)"},
            "Invalid schedule frequency. Run for '1970-01-01T00:00:00.000Z' and '1970-01-01T00:00:30.000Z' are less "
            "than 60 seconds apart",
            id="twice a minute",
        ),
        pytest.param({"Timezone": "Mars/Olympus"}, "Invalid schedule timezone: Mars/Olympus", id="unknown time zone"),
        pytest.param({"EndTime": -1}, "EndTime must be between the years 1970 and 9999", id="before the epoch"),
        pytest.param(
            {"StartTime": 2e9, "EndTime": 2e9}, "StartTime must be before EndTime", id="end not after the start"
        ),
    ],
)
def test_action_is_refused(client: Any, changes: dict[str, Any], message: str) -> None:
    assert refused(put_action, client, **changes) == message
    assert client.describe_scheduled_actions(**VARIANT)["ScheduledActions"] == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param({}, "ScalableTargetAction must be set", id="nothing"),
        pytest.param({"ScalableTargetAction": {"MinCapacity": 1}}, "Schedule must be set", id="no schedule"),
    ],
)
def test_new_action_needs_schedule_and_bounds(client: Any, parameters: dict[str, Any], message: str) -> None:
    assert refused(client.put_scheduled_action, **VARIANT, ScheduledActionName="a", **parameters) == message


def test_empty_time_zone_breaks_a_constraint(server: AutoscalingServer, client: Any) -> None:
    # boto3 itself refuses it.
    body = b'{"ServiceNamespace": "sagemaker", "Timezone": ""}'
    headers = {"x-amz-target": "AnyScaleFrontendService.PutScheduledAction"}
    answer = server.run(server.respond("/", headers, body))
    assert answer.status_code == 400
    assert b"Value '' at 'timezone' failed to satisfy constraint: Member must have length greater than" in answer.body


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param("rate(1 days)", id="singular and plural are free"),
        pytest.param("rate(5minutes)", id="no space"),
        pytest.param("cron(0 1 ? * MON-FRI *)", id="days of the week"),
        pytest.param("cron(0 0/15 6-9,18 L * ? 2027-2030)", id="seconds in front"),
    ],
)
def test_schedule_is_taken(client: Any, schedule: str) -> None:
    put_action(client, Schedule=schedule)
    assert action(client)["Schedule"] == schedule


def test_action_of_the_past_never_runs(server: AutoscalingServer, client: Any) -> None:
    put_action(client, Schedule="at(2020-01-01T00:00:00)")
    assert action(client)["Schedule"] == "at(2020-01-01T00:00:00)"
    assert next_run_at(server) is None


def test_action_is_described_as_given(server: AutoscalingServer, client: Any) -> None:
    window = {"StartTime": datetime(2027, 2, 1, tzinfo=UTC), "EndTime": datetime(2027, 3, 1, tzinfo=UTC)}
    put_action(client, Schedule="cron(0 1 * * ? *)", Timezone="America/New_York", **window)
    described = action(client)
    assert described.pop("CreationTime").timestamp() == server.now
    assert re.fullmatch(
        r"arn:aws:autoscaling:us-east-1:000000000000:scheduledAction:[0-9a-f-]{36}:resource/sagemaker/"
        f"{RESOURCE}:scheduledActionName/night",
        described.pop("ScheduledActionARN"),
    )
    assert described == VARIANT | window | {
        "ScheduledActionName": "night",
        "Schedule": "cron(0 1 * * ? *)",
        "Timezone": "America/New_York",
        "ScalableTargetAction": {"MinCapacity": 1},
    }
    assert next_run_at(server) == window["StartTime"].timestamp()


def test_action_update_drops_only_its_window(client: Any) -> None:
    put_action(client, Schedule="rate(1 day)", Timezone="Asia/Tokyo", StartTime=1.9e9, EndTime=2e9)
    client.put_scheduled_action(**VARIANT, ScheduledActionName="night")
    described = action(client)
    assert (described["Schedule"], described["Timezone"]) == ("rate(1 day)", "Asia/Tokyo")
    assert described["ScalableTargetAction"] == {"MinCapacity": 1}
    assert not {"StartTime", "EndTime"} & described.keys()


def test_action_update_replaces_both_bounds(client: Any) -> None:
    put_action(client, ScalableTargetAction={"MinCapacity": 1, "MaxCapacity": 2})
    client.put_scheduled_action(**VARIANT, ScheduledActionName="night", ScalableTargetAction={"MaxCapacity": 3})
    assert action(client)["ScalableTargetAction"] == {"MaxCapacity": 3}


def test_missing_action_cannot_be_deleted(client: Any) -> None:
    put_action(client)
    target_id = action(client)["ScheduledActionARN"].split(":")[6]
    client.delete_scheduled_action(**VARIANT, ScheduledActionName="night")
    assert refusal(client.delete_scheduled_action, **VARIANT, ScheduledActionName="night") == (
        "ObjectNotFoundException",
        f"No scheduled action found for service namespace: sagemaker, scalable target ID: {target_id}, scheduled "
        "action name: night",
    )


def test_target_has_at_most_200_actions(client: Any) -> None:
    for number in range(200):
        put_action(client, f"action-{number:03}")
    code, message = refusal(put_action, client, "one more")
    assert (code, message) == ("LimitExceededException", "A scalable target can have at most 200 scheduled actions")
    pages = list(client.get_paginator("describe_scheduled_actions").paginate(**VARIANT))
    assert [len(page["ScheduledActions"]) for page in pages] == [50, 50, 50, 50]


def test_run_is_written_down_with_its_bounds(server: AutoscalingServer, client: Any) -> None:
    put_action(client, Schedule="rate(1 day)", ScalableTargetAction={"MinCapacity": 2})
    kept = server.run(server.store.action(RESOURCE, "night"))
    assert kept is not None and kept.next_run_at == server.now + DAY
    due = kept.next_run_at
    assert server.run(server.store.finish_run(kept, ran_at=due, next_run_at=due + DAY, sets_bounds=True))
    assert not server.run(server.store.finish_run(kept, ran_at=due, next_run_at=due + DAY, sets_bounds=True))
    target = client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"][0]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (2, 4)
    assert next_run_at(server) == due + DAY


def test_unreadable_time_is_refused(server: AutoscalingServer, client: Any) -> None:
    # boto3 itself can't send it.
    body = json.dumps(
        VARIANT
        | {
            "ScheduledActionName": "a",
            "Schedule": "rate(1 day)",
            "ScalableTargetAction": {"MinCapacity": 1},
            "StartTime": 253402300800,
        }
    )
    headers = {"x-amz-target": "AnyScaleFrontendService.PutScheduledAction"}
    answer = server.run(server.respond("/", headers, body.encode()))
    assert b"StartTime must be between the years 1970 and 9999" in answer.body


# The platform's calendar


def test_calendar_runs_faster_from_its_anchor() -> None:
    calendar = Calendar(anchor=1000.0, scale=60.0)
    assert calendar.time_at(1001.0) == 1060.0
    assert calendar.wall_time_of(1060.0) == 1001.0


def test_calendar_at_scale_one_is_wall_clock() -> None:
    calendar = Calendar(anchor=1000.0, scale=1.0)
    assert (calendar.time_at(1e9 + 0.1), calendar.wall_time_of(1e9 + 0.1)) == (1e9 + 0.1, 1e9 + 0.1)


def test_calendar_outlives_the_gateway(start: Callable[..., AutoscalingServer]) -> None:
    first = start(time_scale=60.0)
    begun = first.run(open_calendar(first.store, 60.0, first.now))
    second = start(time_scale=60.0)
    assert second.run(open_calendar(second.store, 60.0, second.now + 500)) == begun


def test_other_scale_begins_another_calendar(start: Callable[..., AutoscalingServer]) -> None:
    server = start(time_scale=60.0)
    register(server.client)
    put_action(server.client, Schedule="rate(1 day)")
    server.now += 3600  # 60 hours of the calendar
    put_action(server.client, "later", Schedule="rate(1 day)")
    assert next_run_at(server, "later") == server.now - 3600 + 60 * 3600 + DAY
    calendar = server.run(open_calendar(server.store, 1.0, server.now))
    assert calendar.time_at(server.now) == server.now
    assert next_run_at(server, "later") == server.now + DAY
