"""Scheduled actions that become due: what they change, what is told of it, and what was missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from endpoint.autoscaling.records import ScheduledAction
from endpoint.autoscaling.schedule_runner import last_run
from testing.endpoint.scaling_world import ENDPOINT, RESOURCE, START, ScalingWorld, in_world

DAY = 86400.0


async def bounds(world: ScalingWorld) -> tuple[int, int]:
    target = await world.store.target(RESOURCE)
    assert target is not None
    return target.min_capacity, target.max_capacity


async def next_run_at(world: ScalingWorld, name: str) -> float | None:
    action = await world.store.action(RESOURCE, name)
    assert action is not None
    return None if action.next_run_at is None else action.next_run_at - START


def test_due_action_has_two_activities(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.create_endpoint(0)
        await world.register(0, 4)
        await world.schedule("day", "rate(1 hour)", 60, min_capacity=1, max_capacity=4)
        world.now = START + 59
        assert await world.scaler.step() == START + 60
        assert await world.told() == []
        world.now = START + 60
        assert await world.scaler.step() == START + 3660
        await world.settle()
        told = [(each.description, each.cause, each.status, each.message) for each in await world.activities()]
        cause = "scheduled action name day was triggered"
        assert told == [
            (
                "Setting min capacity to 1 and max capacity to 4",
                cause,
                "Successful",
                "Successfully set min capacity to 1 and max capacity to 4",
            ),
            (
                "Setting desired instance count to 1.",
                cause,
                "Successful",
                "Successfully set desired instance count to 1. Change successfully fulfilled by sagemaker.",
            ),
        ]
        assert (await bounds(world), await world.desired()) == ((1, 4), 1)

    in_world(tmp_path, work)


def test_capacity_within_new_bounds_stays(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.create_endpoint(2)
        await world.register(0, 4)
        await world.schedule("night", "at(2027-01-15T08:00:00)", 0, max_capacity=3)
        assert await world.scaler.step() is None
        assert await world.told() == [("Setting max capacity to 3", "Successful")]
        assert (await bounds(world), await world.desired()) == ((0, 3), 2)

    in_world(tmp_path, work)


def test_suspended_action_is_skipped_not_postponed(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.create_endpoint(0)
        await world.register(0, 4, is_scheduled_suspended=True)
        await world.schedule("day", "rate(1 hour)", 0, min_capacity=1)
        await world.scaler.step()
        await world.store.change_target(RESOURCE, is_scheduled_suspended=False)
        await world.scaler.step()
        assert (await world.told(), await bounds(world)) == ([], (0, 4))
        world.now += 3600
        await world.scaler.step()
        assert (await bounds(world), await world.desired()) == ((1, 4), 1)

    in_world(tmp_path, work)


def test_crossing_bounds_fail_until_next_time(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.create_endpoint(1)
        await world.register(0, 4)
        await world.schedule("more", "rate(1 hour)", 0, min_capacity=5)
        await world.scaler.step()
        [activity] = await world.activities()
        assert (activity.status, activity.message) == (
            "Failed",
            "Failed to set min capacity to 5. Reason: Maximum capacity cannot be less than minimum capacity",
        )
        await world.store.change_target(RESOURCE, max_capacity=6)
        assert (await bounds(world), await next_run_at(world, "more")) == ((0, 6), 3600)
        world.now += 3600
        await world.scaler.step()
        assert (await bounds(world), await world.desired()) == ((5, 6), 5)

    in_world(tmp_path, work)


def test_updating_endpoint_follows_later(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.create_endpoint(1)
        await world.register(0, 4)
        await world.set_by_hand(2)
        await world.schedule("day", "rate(1 hour)", 0, min_capacity=3)
        await world.scaler.step()
        assert await world.told() == [("Setting min capacity to 3", "Successful")]
        await world.settle()
        assert [each.cause for each in await world.activities()] == [
            "scheduled action name day was triggered",
            "minimum capacity was set to 3",
        ]
        assert await world.desired() == 3

    in_world(tmp_path, work)


def test_failed_endpoint_is_not_scalable(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.create_endpoint(1, "Failed")
        await world.register(0, 4)
        await world.schedule("day", "rate(1 hour)", 0, min_capacity=3)
        await world.scaler.step()
        [activity] = await world.activities()
        assert activity.message == (
            f"Failed to set min capacity to 3. Reason: Resource Id [{RESOURCE}] is not scalable. "
            "Reason: The endpoint is Failed."
        )
        assert await bounds(world) == (0, 4)

    in_world(tmp_path, work)


def test_latest_missed_occurrence_runs_once(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.create_endpoint(0)
        await world.register(0, 4)
        await world.schedule("day", "cron(0 9 * * ? *)", 3600, min_capacity=1)
        await world.schedule("night", "cron(0 20 * * ? *)", 12 * 3600, min_capacity=0)
        world.now = START + 10 * DAY + 2 * 3600  # ten in the morning
        world.restart()
        await world.scaler.step()
        assert await bounds(world) == (1, 4)
        assert [each.cause for each in (await world.activities())[:2]] == [
            "scheduled action name night was triggered",
            "scheduled action name day was triggered",
        ]
        assert await next_run_at(world, "day") == 11 * DAY + 3600
        await world.settle()
        world.restart()
        await world.settle()
        assert len(await world.activities()) == 3

    in_world(tmp_path, work)


def test_calendar_speeds_schedules(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.create_endpoint(0)
        await world.register(0, 4)
        await world.schedule("day", "rate(1 hour)", 3600, min_capacity=1)
        assert await world.scaler.step() == START + 60
        world.now = START + 60
        assert await world.scaler.step() == START + 120
        assert await world.desired() == 1

    in_world(tmp_path, work, time_scale=60)


def test_action_of_deleted_target_is_gone(tmp_path: Path) -> None:
    async def work(world: ScalingWorld) -> None:
        await world.create_endpoint(0)
        await world.register(0, 4)
        await world.schedule("day", "rate(1 hour)", 0, min_capacity=1)
        await world.store.delete_target(RESOURCE)
        assert await world.scaler.step() is None
        assert (await world.told(), (await world.catalog.endpoint(ENDPOINT)).desired) == ([], 0)

    in_world(tmp_path, work)


def action(schedule: str, first: float, end: float | None = None) -> ScheduledAction:
    return ScheduledAction(
        resource_id=RESOURCE,
        name="a",
        arn="arn",
        created_at=START,
        schedule=schedule,
        next_run_at=START + first,
        end_at=None if end is None else START + end,
    )


@pytest.mark.parametrize(
    ("due", "until", "last"),
    [
        pytest.param(action("rate(1 minute)", 0), 30, 0, id="first"),
        pytest.param(action("rate(1 minute)", 0), 60, 60, id="now"),
        pytest.param(action("rate(7 minutes)", 0), 1000 * DAY, 205714 * 420, id="rate for years"),
        pytest.param(action("rate(1 minute)", 0, end=DAY), 1000 * DAY, DAY, id="ended"),
        pytest.param(action("cron(0 9 * * ? *)", 3600), 10 * DAY, 9 * DAY + 3600, id="cron"),
        pytest.param(action("cron(0 9 1 1 ? *)", 351 * DAY + 3600), 400 * DAY, 351 * DAY + 3600, id="yearly cron"),
        pytest.param(action("at(2027-01-15T08:00:00)", 0), DAY, 0, id="at"),
    ],
)
def test_last_run_is_the_latest_until_then(due: ScheduledAction, until: float, last: float) -> None:
    assert last_run(due, START + until) - START == last
