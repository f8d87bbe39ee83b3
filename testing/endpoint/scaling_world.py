"""Scaler, store and control plane over one database, with a clock that tests set and a fleet that obeys them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from endpoint.alarms.firing import Firing, FiringResult
from endpoint.autoscaling import rows
from endpoint.autoscaling.calendar import Calendar
from endpoint.autoscaling.recording import Record
from endpoint.autoscaling.records import Activity, ScalableTarget, ScalingPolicy, ScheduledAction
from endpoint.autoscaling.scaler import Scaler
from endpoint.autoscaling.schedule_runner import ScheduleRunner
from endpoint.autoscaling.store import Store
from endpoint.autoscaling.variants import Variants
from endpoint.control_plane.control import ControlPlane
from endpoint.settings import Settings
from endpoint.state import catalog
from endpoint.state.catalog import Catalog, Endpoint
from endpoint.state.database import Database
from testing.endpoint.control_server import StubFleet

T = TypeVar("T")

ENDPOINT = "e"
RESOURCE = f"endpoint/{ENDPOINT}/variant/AllTraffic"
START = 1_800_000_000.0
"""A Friday, 08:00 UTC."""
UP = [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}]
DOWN = [{"MetricIntervalUpperBound": 0, "ScalingAdjustment": -1}]


class Killed(BaseException):
    """The gateway was killed here: nothing catches that."""


class KillingDatabase(Database):
    """Raises Killed at one of its writes: before it is done, or after."""

    kill_at: int | None = None
    kills_after = False
    writes = 0

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        self.writes += 1
        is_last = self.writes == self.kill_at
        if is_last and not self.kills_after:
            raise Killed
        result = await super().write(change)
        if is_last:
            raise Killed
        return result


class ScalingWorld:
    """One gateway's parts; `restart` makes them anew on what is on the disk. Must be closed."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self.settings = Settings(data_dir=data_dir, **settings)
        self.now = START
        self.calendar = Calendar(anchor=START, scale=self.settings.time_scale)
        self.records: list[Record] = []
        self.ended_busy = 0
        self._start()

    def _start(self) -> None:
        self.database = KillingDatabase(self.settings.data_dir / "db", catalog.SCHEMA, rows.SCHEMA)
        self.catalog = Catalog(self.database)
        self.fleet = StubFleet(self.catalog)
        self.fleet.is_quick = False
        self.control = ControlPlane(self.settings, self.catalog, self.fleet.wake, self._announce)
        self.store = Store(self.database)
        variants = Variants(self.catalog, self.control.call, lambda _: self.ended_busy)
        schedules = ScheduleRunner(self.store, variants, self._load_calendar)
        self.scaler = Scaler(
            self.settings, self.store, variants, schedules, clock=lambda: self.now, record=self.records.append
        )
        self.catalog.subscribe(self.scaler.wake)

    def restart(self) -> None:
        """Do as a gateway that was killed and is started again."""
        self.database.close()
        self._start()

    def close(self) -> None:
        self.database.close()

    async def _announce(self, endpoint: str) -> None:
        pass

    async def _load_calendar(self) -> Calendar:
        return self.calendar

    # SageMaker

    async def create_endpoint(
        self, count: int = 1, status: str = "InService", *, is_async: bool = True, name: str = ENDPOINT
    ) -> None:
        config: dict[str, Any] = {"ProductionVariants": [{"VariantName": "AllTraffic", "ModelName": "m"}]}
        if is_async:
            config["AsyncInferenceConfig"] = {"OutputConfig": {"S3OutputPath": "s3://b/o"}}
        state = {
            "status": status,
            "failure_reason": None,
            "config_name": "c",
            "target_config_name": None,
            "desired": count,
            "current": count,
            "deployed": {"c": {"config": config, "model": {"PrimaryContainer": {"Image": "i"}}}},
        }
        await self.catalog.create("endpoint", name, f"arn:{name}", {}, {}, state)

    async def set_by_hand(self, count: int) -> None:
        """Do as a user's UpdateEndpointWeightsAndCapacities."""
        change = {"VariantName": "AllTraffic", "DesiredInstanceCount": count}
        await self.control.update_capacity({"EndpointName": ENDPOINT, "DesiredWeightsAndCapacities": [change]})

    async def settle(self) -> None:
        """Let the fleet do what it was asked for, and the scaler see it."""
        await self.fleet.settle()
        await self.scaler.step()

    async def endpoint(self) -> Endpoint:
        return await self.catalog.endpoint(ENDPOINT)

    async def desired(self) -> int:
        return (await self.endpoint()).desired

    # Application Auto Scaling

    async def register(self, low: int = 0, high: int = 5, **changes: Any) -> None:
        values: dict[str, Any] = {
            "resource_id": RESOURCE,
            "arn": "arn:target",
            "created_at": self.now,
            "role_arn": "arn:role",
        }
        await self.store.add_target(
            ScalableTarget(**values | {"min_capacity": low, "max_capacity": high} | changes), {}
        )
        await self.scaler.step()

    async def put_steps(self, name: str, steps: list[dict[str, Any]], **changes: Any) -> None:
        await self._put(name, "StepScaling", {"AdjustmentType": "ChangeInCapacity", "StepAdjustments": steps} | changes)

    async def put_tracking(self, name: str, target: float, **changes: Any) -> None:
        await self._put(name, "TargetTrackingScaling", {"TargetValue": target} | changes)

    async def _put(self, name: str, kind: Any, configuration: dict[str, Any]) -> None:
        arn = f"arn:{name}"
        policy = ScalingPolicy(
            resource_id=RESOURCE,
            name=name,
            arn=arn,
            created_at=self.now,
            type=kind,
            configuration=configuration,
            action_arn=f"{arn}:createdBy/1",
        )
        await self.store.put_policy(policy)

    async def schedule(self, name: str, expression: str, first: float, **changes: Any) -> None:
        """Put a scheduled action that is due `first` seconds after START."""
        action = ScheduledAction(
            resource_id=RESOURCE,
            name=name,
            arn=f"arn:{name}",
            created_at=self.now,
            schedule=expression,
            next_run_at=START + first,
            **changes,
        )
        await self.store.put_action(action)

    async def fire(self, policy: str, value: float = 1.0, *, is_above: bool = True, **changes: Any) -> FiringResult:
        return (await self.scaler.act([self.firing(policy, value, is_above=is_above, **changes)]))[0]

    def firing(self, policy: str, value: float = 1.0, *, is_above: bool = True, **changes: Any) -> Firing:
        """Return what an alarm tells whose threshold is 1 and whose last three values are `value`."""
        values: dict[str, Any] = {
            "action": f"arn:{policy}",
            "alarm": f"{policy}-alarm",
            "values": (value,) * 3,
            "threshold": 1.0,
            "is_above": is_above,
            "at": self.now,
        }
        return Firing(**values | changes)

    async def activities(self, *, has_not_scaled: bool = False) -> list[Activity]:
        """Return the activities, the oldest first."""
        return (await self.store.activities(has_not_scaled=has_not_scaled))[::-1]

    async def told(self) -> list[tuple[str, str]]:
        """Return the description and the status of each activity that scales, the oldest first."""
        return [(activity.description, activity.status) for activity in await self.activities()]

    async def reasons(self) -> list[str]:
        """Return the codes of the not-scaled activities, the oldest first."""
        return [
            reason["Code"]
            for activity in await self.activities(has_not_scaled=True)
            for reason in activity.not_scaled_reasons
        ]


def in_world(data_dir: Path, work: Callable[[ScalingWorld], Awaitable[Any]], **settings: Any) -> Any:
    """Return the result of `work` in a new world on `data_dir`."""

    async def run() -> Any:
        world = ScalingWorld(data_dir, **settings)
        try:
            return await work(world)
        finally:
            world.close()

    return asyncio.run(run())
