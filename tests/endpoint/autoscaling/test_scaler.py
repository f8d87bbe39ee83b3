"""The scaler over a real database and control plane: what firings lead to, and how activities end."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from endpoint.autoscaling.decisions import Cooldown, decide
from endpoint.autoscaling.recording import Recorder, read_records
from endpoint.autoscaling.resources import resource_id_of
from endpoint.aws.errors import AwsError
from testing.endpoint.scaling_world import DOWN, ENDPOINT, RESOURCE, START, UP, Killed, ScalingWorld, in_world
from testing.server import TIMEOUT_S


async def start(world: ScalingWorld, count: int = 1, low: int = 0, high: int = 5) -> None:
    """Make an endpoint, a target, and policies that add one and remove one."""
    await world.create_endpoint(count)
    await world.register(low, high)
    await world.put_steps("up", UP)
    await world.put_steps("down", DOWN)


# The life of an activity


def test_firing_leads_to_activity_in_aws_words(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        world.now += 10
        assert (await world.fire("up")).error is None
        endpoint = await world.endpoint()
        assert (endpoint.status, endpoint.desired) == ("Updating", 2)
        [activity] = await world.activities()
        assert activity.description == "Setting desired instance count to 2."
        assert activity.cause == "monitor alarm up-alarm in state ALARM triggered policy up"
        assert (activity.status, activity.started_at, activity.ended_at) == ("InProgress", START + 10, None)
        assert activity.message == (
            "Successfully set desired instance count to 2. Waiting for change to be fulfilled by sagemaker."
        )
        world.now += 400
        await world.settle()
        [activity] = await world.activities()
        assert (activity.status, activity.ended_at) == ("Successful", START + 410)
        assert activity.message == (
            "Successfully set desired instance count to 2. Change successfully fulfilled by sagemaker."
        )

    in_world(tmp_path, work)


def test_cooldown_begins_when_fulfilled(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        await world.fire("up")
        world.now += 1000
        await world.settle()
        target = await world.store.target(RESOURCE)
        assert target is not None
        assert target.cooldowns == {"up": Cooldown(added=1, out_until=world.now + 300)}
        world.now += 299
        await world.fire("up")
        assert await world.desired() == 2
        world.now += 1
        await world.fire("up")
        assert await world.desired() == 3

    in_world(tmp_path, work)


def test_time_scale_shortens_cooldowns(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world, count=3)
        await world.fire("down", 0, is_above=False)
        await world.settle()
        world.now += 4.9
        await world.fire("down", 0, is_above=False)
        assert await world.desired() == 2
        world.now += 0.1
        await world.fire("down", 0, is_above=False)
        assert await world.desired() == 1

    in_world(tmp_path, work, time_scale=60)


def test_clock_set_back_lengthens_no_cooldown(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world, count=3)
        await world.fire("down", 0, is_above=False)
        await world.settle()
        world.now -= 86400
        await world.fire("down", 0, is_above=False)
        assert await world.desired() == 2
        world.now += 300
        await world.fire("down", 0, is_above=False)
        assert await world.desired() == 1

    in_world(tmp_path, work)


def test_greater_time_scale_shortens_running_cooldown(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world, count=3)
        await world.fire("down", 0, is_above=False)
        await world.settle()
        world.settings = replace(world.settings, time_scale=60)
        world.restart()
        await world.fire("down", 0, is_above=False)
        assert await world.desired() == 2
        world.now += 5
        await world.fire("down", 0, is_above=False)
        assert await world.desired() == 1

    in_world(tmp_path, work)


def test_later_change_by_hand_overrides(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        await world.fire("up")
        await world.fleet.settle()
        await world.set_by_hand(4)
        await world.settle()
        [activity] = await world.activities()
        assert (activity.status, activity.message) == (
            "Overridden",
            "Successfully set desired instance count to 2. Found it was later changed to 4.",
        )
        target = await world.store.target(RESOURCE)
        assert target is not None and target.cooldowns == {}

    in_world(tmp_path, work)


def test_refusal_by_sagemaker_fails_activity(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.create_endpoint(is_async=False)
        await world.register()
        await world.put_steps("down", DOWN)
        assert (await world.fire("down", 0, is_above=False)).error is None
        [activity] = await world.activities()
        assert activity.status == "Failed" and activity.message is not None
        assert re.fullmatch(
            r"Failed to set desired instance count to 0\. Reason: DesiredInstanceCount can only be 0 for asynchronous "
            r"endpoints\. \(Service: AmazonSageMaker; Status Code: 400; Error Code: ValidationException; "
            r"Request ID: [0-9a-f-]{36}\)",
            activity.message,
        )
        target = await world.store.target(RESOURCE)
        assert target is not None and target.cooldowns == {}

    in_world(tmp_path, work)


def test_failed_update_fails_activity_without_cooldown(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        await world.fire("up")
        await world.catalog.change_endpoint(ENDPOINT, status="InService", failure_reason="No GPU.", desired=1)
        await world.scaler.step()
        [activity] = await world.activities()
        assert activity.status == "Failed"
        assert activity.message == "Failed to set desired instance count to 2. Reason: No GPU."
        await world.fire("up")
        assert await world.desired() == 2

    in_world(tmp_path, work)


def test_deletion_ends_activity_under_way(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        await world.fire("up")
        with pytest.raises(AwsError, match="Cannot update in-progress endpoint"):
            await world.control.delete_endpoint({"EndpointName": ENDPOINT})
        await world.fleet.settle()
        await world.control.delete_endpoint({"EndpointName": ENDPOINT})
        await world.store.delete_target(RESOURCE)
        await world.settle()
        [activity] = await world.activities()
        assert activity.message == "Failed to set desired instance count to 2. Reason: The endpoint was deleted."

    in_world(tmp_path, work)


def test_deregistered_target_has_its_activity_ended(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        await world.fire("up")
        await world.store.delete_target(RESOURCE)
        await world.settle()
        assert await world.told() == [("Setting desired instance count to 2.", "Successful")]

    in_world(tmp_path, work)


def test_deregistered_target_is_asked_for_nothing(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        world.database.kill_at = world.database.writes + 1
        world.database.kills_after = True
        with pytest.raises(Killed):
            await world.fire("up")
        world.restart()
        await world.store.delete_target(RESOURCE)
        await world.settle()
        [activity] = await world.activities()
        assert activity.message == (
            "Failed to set desired instance count to 2. Reason: The scalable target was deregistered."
        )
        assert await world.desired() == 1

    in_world(tmp_path, work)


def test_failure_of_decision_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        await world.put_steps("broken", UP, StepAdjustments=[{}])
        result = await world.fire("up")
        assert result.error == "KeyError: 'ScalingAdjustment'"
        assert "The scaling policies of endpoint/e/variant/AllTraffic failed" in caplog.text
        await world.store.delete_policy(RESOURCE, "broken")
        await world.fire("up")
        assert await world.desired() == 2

    in_world(tmp_path, work)


def test_ended_busy_instances_are_told(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world, count=3)
        world.ended_busy = 7
        await world.fire("down", 0, is_above=False)
        world.ended_busy = 8
        await world.settle()
        [activity] = await world.activities()
        assert activity.details == "Instances ended with requests in them: 1"

    in_world(tmp_path, work)


# Firings


def test_all_firings_of_target_are_one_decision(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world, count=2)
        await world.put_tracking("tracking", 5)
        high = world.firing("tracking", 9, action="arn:tracking:createdBy/1", alarm="AlarmHigh")
        results = await world.scaler.act([world.firing("up"), high, world.firing("down", 0, is_above=False)])
        assert [result.error for result in results] == [None] * 3
        [activity] = await world.activities()
        assert activity.cause == "monitor alarm AlarmHigh in state ALARM triggered policy tracking"
        assert len(world.records) == 1 and await world.desired() == 4

    in_world(tmp_path, work)


def test_firing_of_unknown_policy_is_an_error(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        results = await world.scaler.act([world.firing("gone"), world.firing("up")])
        assert [result.error for result in results] == ["No scaling policy found for arn:gone", None]
        assert await world.desired() == 2

    in_world(tmp_path, work)


def test_failing_target_stops_no_other(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        await world.create_endpoint(name="other")
        target, policy = await world.store.target(RESOURCE), await world.store.policy(RESOURCE, "up")
        assert target is not None and policy is not None
        other = resource_id_of("other", "AllTraffic")
        await world.store.add_target(replace(target, resource_id=other, arn="arn:other"), {})
        await world.store.put_policy(
            replace(policy, resource_id=other, arn="arn:broken", action_arn="arn:broken:", configuration={})
        )
        results = await world.scaler.act([world.firing("broken"), world.firing("up")])
        assert [result.error and result.error.split(":")[0] for result in results] == ["KeyError", None]
        assert await world.desired() == 2

    in_world(tmp_path, work)


def test_firing_without_endpoint_is_an_error(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.register()
        await world.put_steps("up", UP)
        assert (await world.fire("up")).error == f"Resource {RESOURCE} does not exist"

    in_world(tmp_path, work)


def test_updating_endpoint_is_not_scaled(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        await world.set_by_hand(2)
        await world.fire("up")
        assert (await world.told(), await world.reasons()) == ([], ["TargetServicePutResourceAsUnscalable"])
        await world.settle()
        await world.fire("up")
        assert await world.desired() == 3

    in_world(tmp_path, work)


def test_not_scaled_activity_in_aws_words(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world, count=5)
        await world.fire("up")
        [activity] = await world.activities(has_not_scaled=True)
        assert activity.description == "Attempting to scale due to alarm triggered"
        assert activity.cause == "monitor alarm up-alarm in state ALARM triggered policy up"
        assert (activity.status, activity.message, activity.ended_at) == ("Failed", None, world.now)
        assert activity.not_scaled_reasons == ({"Code": "AlreadyAtMaxCapacity", "MaxCapacity": 5},)

    in_world(tmp_path, work)


def test_same_reason_is_written_once_running(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world, count=4)
        await world.put_tracking("tracking", 5)
        for _ in range(2):
            await world.fire("tracking", 4.4, is_above=False)
        assert await world.reasons() == ["AlreadyAtDesiredCapacity"]
        await world.fire("up")
        await world.settle()
        world.restart()
        for _ in range(3):
            await world.scaler.act([world.firing("up"), world.firing("tracking", 4.4, is_above=False)])
        assert await world.reasons() == [
            "AlreadyAtDesiredCapacity",
            "AlreadyAtMaxCapacity",
            "AlreadyAtDesiredCapacity",
        ]

    in_world(tmp_path, work)


def test_policy_made_anew_has_no_cooldown(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        await world.fire("up")
        await world.settle()
        await world.store.delete_policy(RESOURCE, "up")
        await world.put_steps("up", UP)
        await world.fire("up")
        assert await world.desired() == 3

    in_world(tmp_path, work)


# Bounds


@pytest.mark.parametrize(
    ("count", "low", "high", "capacity", "cause"),
    [
        pytest.param(0, 2, 4, 2, "minimum capacity was set to 2", id="below"),
        pytest.param(5, 2, 4, 4, "maximum capacity was set to 4", id="above"),
    ],
)
def test_registration_brings_capacity_within_bounds(
    tmp_path: Path, count: int, low: int, high: int, capacity: int, cause: str
) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.create_endpoint(count)
        await world.register(low, high)
        await world.settle()
        [activity] = await world.activities()
        assert (activity.cause, activity.status) == (cause, "Successful")
        assert await world.desired() == capacity

    in_world(tmp_path, work)


@pytest.mark.parametrize("status", ["Creating", "Updating"])
def test_new_bounds_wait_for_service(tmp_path: Path, status: str) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.create_endpoint(1, status)
        await world.register(2, 4)
        assert await world.told() == []
        await world.settle()
        await world.settle()
        assert await world.told() == [("Setting desired instance count to 2.", "Successful")]

    in_world(tmp_path, work)


def test_capacity_set_by_hand_stays_outside_bounds(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world, count=2, low=2)
        await world.set_by_hand(1)
        await world.settle()
        assert (await world.desired(), await world.told()) == (1, [])
        await world.store.change_target(RESOURCE, min_capacity=2)
        await world.scaler.step()
        assert await world.desired() == 2

    in_world(tmp_path, work)


def test_bounds_follow_activity_under_way(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        await world.fire("up")
        await world.store.change_target(RESOURCE, min_capacity=3)
        await world.scaler.step()
        assert await world.desired() == 2
        await world.settle()
        await world.settle()
        assert await world.told() == [
            ("Setting desired instance count to 2.", "Successful"),
            ("Setting desired instance count to 3.", "Successful"),
        ]

    in_world(tmp_path, work)


# The task, and the record


def test_end_of_update_wakes_the_task(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world)
        task = asyncio.create_task(world.scaler.run())
        await world.fire("up")
        await world.fleet.settle()
        async with asyncio.timeout(TIMEOUT_S):
            while await world.told() != [("Setting desired instance count to 2.", "Successful")]:
                await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    in_world(tmp_path, work)


def test_recorded_decisions_are_made_again(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await start(world, count=2)
        await world.put_tracking("tracking", 5)
        for value in (9, 9, 4.4, 0, 0, 0, 0):
            await world.scaler.act([world.firing("up"), world.firing("tracking", value, is_above=value > 5)])
            await world.settle()
            world.now += 200

    recorder = Recorder(tmp_path / "new" / "decisions.jsonl")

    async def recorded(world: ScalingWorld) -> None:
        await work(world)
        for record in world.records:
            recorder.record(record)
        read = list(read_records(tmp_path / "new" / "decisions.jsonl"))
        assert read == world.records and len(read) == 7
        assert any(record.decision.not_scaled for record in read)
        assert all(decide(each.target, each.triggers, each.cooldowns, each.now) == each.decision for each in read)

    in_world(tmp_path, recorded)


def test_unreadable_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"decisions\.jsonl, line 1"):
        list(read_records(path))
