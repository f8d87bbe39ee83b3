"""A gateway that is killed at any write of a scaling cycle, before or after it, and started again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from testing.endpoint.scaling_world import DOWN, RESOURCE, START, UP, Killed, ScalingWorld

MAX_MINUTES = 60


class Cycle:
    """One cycle, minute by minute: registered with a minimum of 1, out to 3, a schedule to 1 and back, then in to 0.

    Alarms fire again every minute while they are in breach, and so they do after a restart.
    """

    def __init__(self, world: ScalingWorld) -> None:
        self.world = world
        self.restarts = 0

    async def live(self) -> None:
        while not await self._minute():
            self.world.now += 60
            assert self.world.now < START + MAX_MINUTES * 60

    async def _minute(self) -> bool:
        """Let all happen that happens in a minute. Return whether the cycle is over."""
        try:
            target = await self.world.store.target(RESOURCE)
            is_evening = target is not None and target.min_capacity == 0
            if is_evening and await self.world.desired() == 0 and not await self.world.store.open_activities():
                return True
            await self.world.scaler.step()
            name, value = ("down", 0.0) if is_evening else ("up", 1.0)
            await self.world.scaler.act([self.world.firing(name, value, is_above=not is_evening)])
            await self.world.settle()
        except Killed:
            self.restarts += 1
            self.world.restart()
        return False


async def begin(world: ScalingWorld) -> None:
    await world.create_endpoint(0)
    await world.register(1, 3)
    await world.put_steps("up", UP, Cooldown=60)
    await world.put_steps("down", DOWN, Cooldown=60)
    await world.schedule("evening", "at(2027-01-15T08:20:00)", 1200, min_capacity=0, max_capacity=2)


EXPECTED = [
    ("Setting desired instance count to 1.", "minimum capacity was set to 1"),
    ("Setting desired instance count to 2.", "monitor alarm up-alarm in state ALARM triggered policy up"),
    ("Setting desired instance count to 3.", "monitor alarm up-alarm in state ALARM triggered policy up"),
    ("Setting min capacity to 0 and max capacity to 2", "scheduled action name evening was triggered"),
    ("Setting desired instance count to 2.", "scheduled action name evening was triggered"),
    ("Setting desired instance count to 1.", "monitor alarm down-alarm in state ALARM triggered policy down"),
    ("Setting desired instance count to 0.", "monitor alarm down-alarm in state ALARM triggered policy down"),
]


async def check(world: ScalingWorld) -> None:
    done = [each for each in await world.activities() if each.status == "Successful"]
    assert [(each.description, each.cause) for each in done] == EXPECTED
    assert len(done) == len(await world.activities())
    endpoint = await world.endpoint()
    assert (endpoint.desired, endpoint.current, endpoint.status) == (0, 0, "InService")
    target = await world.store.target(RESOURCE)
    assert target is not None and not any(each.asked for each in target.cooldowns.values())


def in_world(path: Path, work: Callable[[ScalingWorld], Awaitable[None]]) -> None:
    async def inside() -> None:
        path.mkdir()
        world = ScalingWorld(path)
        try:
            await work(world)
        finally:
            world.close()

    asyncio.run(inside())


def count_writes(path: Path) -> int:
    counts = []

    async def undisturbed(world: ScalingWorld) -> None:
        await begin(world)
        before = world.database.writes
        await Cycle(world).live()
        await check(world)
        counts.append(world.database.writes - before)

    in_world(path, undisturbed)
    return counts[0]


@pytest.mark.parametrize("kills_after", [False, True], ids=["before the write", "after the write"])
def test_killed_cycle_ends_like_an_undisturbed_one(tmp_path: Path, kills_after: bool) -> None:
    writes = count_writes(tmp_path / "undisturbed")
    assert writes > 20

    def killed_at(number: int) -> Callable[[ScalingWorld], Awaitable[None]]:
        async def work(world: ScalingWorld) -> None:
            await begin(world)
            world.database.kill_at = world.database.writes + number
            world.database.kills_after = kills_after
            cycle = Cycle(world)
            await cycle.live()
            assert cycle.restarts == 1
            await check(world)

        return work

    for number in range(1, writes + 1):
        in_world(tmp_path / str(number), killed_at(number))
