"""Scaling as a whole: unmodified boto3, `python -m endpoint up` on a quick clock, and containers that are processes.

A minute of the platform's clock is a quarter of a second. How long a container is busy is said by the requests: they
wait until there is a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from endpoint.autoscaling.decisions import decide
from endpoint.autoscaling.recording import read_records
from testing.endpoint.endpoint_up import EndpointUp
from testing.endpoint.scaling import Scaling
from testing.server import eventually


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointUp]:
    """Start an endpoint process, which records its decisions. Each test has an endpoint of its own in it."""
    directory = tmp_path_factory.mktemp("up")
    up = EndpointUp(directory, "--time-scale", "240", "--record-scaling", str(directory / "decisions"))
    try:
        up.make_places()
        yield up
    finally:
        up.close()


def explained(scaling: Scaling) -> list[tuple[str, str]]:
    """Return description and cause of all activities, which have succeeded, the oldest first."""
    activities = scaling.activities()
    for activity in activities:
        capacity = activity["Description"].removeprefix("Setting desired instance count to ").removesuffix(".")
        message = f"Successfully set desired instance count to {capacity}. Change successfully fulfilled by sagemaker."
        assert (activity["StatusCode"], activity["StatusMessage"]) == ("Successful", message)
        assert activity["StartTime"] <= activity["EndTime"]
    return [(activity["Description"], activity["Cause"]) for activity in activities]


def test_backlog_scales_from_zero_and_back(up: EndpointUp, tmp_path: Path) -> None:
    up.make_endpoint("cycle")
    scaling = Scaling(up, "cycle")
    scaling.put_documented(max_capacity=3, target=4)
    high, low = scaling.tracking_alarms()
    scaling.wait_for(0)

    first = up.submit("cycle", f"wait:{tmp_path / 'first'}", body=b"first")
    others = [up.submit("cycle", f"wait:{tmp_path / 'others'}", body=str(number).encode()) for number in range(11)]
    scaling.wait_for(3)
    (tmp_path / "others").touch()
    for number, sent in enumerate(others):
        assert sent.ended().outputs()[0]["body"] == str(number).encode()
    scaling.wait_for(1)
    assert first.outputs() == first.failures() == [], "the busy instance is kept"
    (tmp_path / "first").touch()
    assert first.ended().outputs()[0]["body"] == b"first"
    assert first.notice()["invocationStatus"] == "Completed"
    scaling.wait_for(0)

    causes = {
        "wake": f"monitor alarm {scaling.wake_alarm} in state ALARM triggered policy wake",
        "high": f"monitor alarm {high} in state ALARM triggered policy backlog",
        "low": f"monitor alarm {low} in state ALARM triggered policy backlog",
    }
    assert explained(scaling) == [
        (f"Setting desired instance count to {capacity}.", causes[cause])
        for capacity, cause in [(0, "low"), (1, "wake"), (3, "high"), (1, "low"), (0, "low")]
    ]
    records = [each for each in read_records(up.directory / "decisions") if each.resource_id == scaling.resource_id]
    assert {each.decision.capacity for each in records} >= {0, 1, 3}
    assert all(decide(each.target, each.triggers, each.cooldowns, each.now) == each.decision for each in records)
    up.client("sagemaker").delete_endpoint(EndpointName="cycle")
    assert not scaling.alarms().keys() & {high, low} and scaling.wake_alarm in scaling.alarms()


def test_gateway_killed_at_zero_wakes_endpoint(up: EndpointUp) -> None:
    up.make_endpoint("killed", instances=0)
    Scaling(up, "killed").put_documented(max_capacity=1, target=4)
    sent = up.submit("killed")
    up.kill()
    up.start()
    assert sent.ended().outputs()[0]["body"] == b"input"
    assert "internal error" not in up.log() and "Traceback" not in up.log()


def test_suspended_target_scales_once_resumed(up: EndpointUp) -> None:
    up.make_endpoint("suspended", instances=0)
    scaling = Scaling(up, "suspended")
    scaling.register(MinCapacity=0, MaxCapacity=1, SuspendedState={"DynamicScalingOutSuspended": True})
    scaling.put_wake()
    sent = up.submit("suspended")
    history = up.client("cloudwatch").describe_alarm_history
    eventually(lambda: history(AlarmName=scaling.wake_alarm, HistoryItemType="Action")["AlarmHistoryItems"])
    assert scaling.alarms()[scaling.wake_alarm] == "ALARM"
    assert scaling.capacity() == ("InService", 0, 0) and scaling.activities(IncludeNotScaledActivities=True) == []
    scaling.register(SuspendedState={"DynamicScalingOutSuspended": False})
    assert sent.ended().outputs()[0]["body"] == b"input"
    scaling.wait_for(1)


def test_scheduled_action_sets_bounds_and_capacity(up: EndpointUp) -> None:
    up.make_endpoint("planned", instances=0)
    scaling = Scaling(up, "planned")
    scaling.register(MinCapacity=0, MaxCapacity=1)
    bounds = {"MinCapacity": 2, "MaxCapacity": 3}
    scaling.client.put_scheduled_action(
        **scaling.target, ScheduledActionName="morning", Schedule="rate(3 minutes)", ScalableTargetAction=bounds
    )
    scaling.wait_for(2)
    told = [(activity["Description"], activity["Cause"]) for activity in scaling.activities()[:2]]
    cause = "scheduled action name morning was triggered"
    assert told == [
        ("Setting min capacity to 2 and max capacity to 3", cause),
        ("Setting desired instance count to 2.", cause),
    ]
