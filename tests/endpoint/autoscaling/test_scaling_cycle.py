"""From zero to three instances and back by a wake-up alarm and target tracking: real alarms, a clock that is set."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from endpoint.alarms import store as alarm_store
from endpoint.alarms.actions import Actions
from endpoint.alarms.alarms import Alarms
from endpoint.alarms.evaluator import Evaluator
from endpoint.alarms.firing import Firing, FiringResult
from endpoint.alarms.series import Series
from endpoint.alarms.store import AlarmStore
from endpoint.autoscaling import rows
from endpoint.autoscaling.scaling import Scaling
from endpoint.cloudwatch.metrics import NAMESPACE, gauge_values
from endpoint.control_plane.control import ControlPlane
from endpoint.settings import Settings
from endpoint.state import catalog
from endpoint.state.catalog import Catalog
from endpoint.state.database import Database
from testing.endpoint.control_server import StubFleet

START = 1_800_000_000.0
RESOURCE = "endpoint/e/variant/AllTraffic"
TARGET = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": RESOURCE,
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
}
DIMENSIONS = [{"Name": "EndpointName", "Value": "e"}]
STARTING_MINUTES = 4
"""Minutes from a request for instances to their being there."""
BACKLOGS = [*[0] * 5, *[12] * 30, *[3] * 40, *[0] * 40]
"""Backlog in each minute."""


class Cycle:
    """One gateway's alarms and scaling over a fleet whose instances take some minutes to start."""

    def __init__(self, data_dir: Path, time_scale: float) -> None:
        self.settings = Settings(data_dir=data_dir, time_scale=time_scale)
        self.minute_s = 60 / time_scale
        self.now = START
        self.waited = 0
        self.start()

    def start(self) -> None:
        database = Database(self.settings.data_dir / "db", catalog.SCHEMA, alarm_store.SCHEMA, rows.SCHEMA)
        self.database = database
        self.catalog = Catalog(database)
        self.fleet = StubFleet(self.catalog)
        self.fleet.is_quick = False
        control = ControlPlane(self.settings, self.catalog, self.fleet.wake, self._announce)
        alarms, self.series = AlarmStore(database), Series(self.settings)
        actions = Actions(alarms, self._act)
        self.alarms = Alarms(self.settings, alarms, actions, clock=lambda: self.now)
        self.evaluator = Evaluator(self.settings, alarms, self.series, actions, clock=lambda: self.now)
        self.scaling = Scaling(self.settings, database, self.catalog, control.call, self.alarms, clock=lambda: self.now)

    async def restart(self) -> None:
        """Do as a gateway that was killed and is started again."""
        self.database.close()
        self.start()
        await self.evaluator.restore(self.now)
        await self.scaling.operations.resume()
        await self.scaling.scaler.step()

    async def _act(self, firings: Any) -> list[FiringResult]:
        assert all(isinstance(firing, Firing) for firing in firings)
        return await self.scaling.act(firings)

    async def _announce(self, endpoint: str) -> None:
        pass

    async def begin(self) -> None:
        """Make an endpoint without instances, and AWS's two policies for asynchronous endpoints."""
        variant = {"VariantName": "AllTraffic", "ModelName": "m"}
        config = {"ProductionVariants": [variant], "AsyncInferenceConfig": {"OutputConfig": {"S3OutputPath": "s3://b"}}}
        state = {
            "status": "InService",
            "failure_reason": None,
            "config_name": "c",
            "target_config_name": None,
            "desired": 0,
            "current": 0,
            "deployed": {"c": {"config": config, "model": {}}},
        }
        await self.catalog.create("endpoint", "e", "arn:e", {}, {}, state)
        register = TARGET | {"MinCapacity": 0, "MaxCapacity": 5}
        await self.scaling.operations.call("RegisterScalableTarget", register)
        await self.put_policies()

    async def put_policies(self) -> None:
        call = self.scaling.operations.call
        metric = {
            "MetricName": "ApproximateBacklogSizePerInstance",
            "Namespace": NAMESPACE,
            "Dimensions": DIMENSIONS,
            "Statistic": "Average",
        }
        tracking = {"TargetValue": 4.0, "CustomizedMetricSpecification": metric}
        await call(
            "PutScalingPolicy",
            TARGET
            | {
                "PolicyName": "tracking",
                "PolicyType": "TargetTrackingScaling",
                "TargetTrackingScalingPolicyConfiguration": tracking,
            },
        )
        steps = {
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Average",
            "Cooldown": 300,
            "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
        }
        wake = {"PolicyName": "wake", "PolicyType": "StepScaling", "StepScalingPolicyConfiguration": steps}
        put = await call("PutScalingPolicy", TARGET | wake)
        await self.alarms.put(
            {
                "AlarmName": "wake",
                "MetricName": "HasBacklogWithoutCapacity",
                "Namespace": NAMESPACE,
                "Dimensions": DIMENSIONS,
                "Statistic": "Average",
                "Period": 60,
                "EvaluationPeriods": 2,
                "Threshold": 1.0,
                "ComparisonOperator": "GreaterThanOrEqualToThreshold",
                "TreatMissingData": "missing",
                "AlarmActions": [put["PolicyARN"]],
            }
        )

    async def minute(self, backlog: int) -> int:
        """Let a minute with a backlog go by, and what it leads to happen. Return the desired capacity after it."""
        endpoint = await self.catalog.endpoint("e")
        at = self.now + self.minute_s / 2
        data = [
            {"MetricName": name, "Dimensions": DIMENSIONS, "Timestamp": at, "Value": value, "Unit": "Count"}
            for name, value in gauge_values(backlog, 0.0, endpoint.current).items()
        ]
        self.series.record(NAMESPACE, data, at)
        self.now += self.minute_s
        await self.evaluator.tick(self.now)
        self.waited = self.waited + 1 if endpoint.status == "Updating" else 0
        if self.waited >= STARTING_MINUTES:
            await self.fleet.settle()
        await self.scaling.scaler.step()
        return (await self.catalog.endpoint("e")).desired

    async def causes(self) -> list[tuple[str, str, str]]:
        """Return what each activity has done, by which policy, and its status; the oldest first."""
        answer = await self.scaling.operations.call("DescribeScalingActivities", TARGET)
        return [
            (each["Description"].split()[-1], each["Cause"].split()[-1], each["StatusCode"])
            for each in reversed(answer["ScalingActivities"])
        ]


async def live(cycle: Cycle, *, has_restarts: bool) -> list[tuple[int, int]]:
    """Return the minutes after which the capacity was another, with the capacity."""
    await cycle.begin()
    changes, last = [], 0
    for minute, backlog in enumerate(BACKLOGS, 1):
        if has_restarts:
            await cycle.restart()
        if (desired := await cycle.minute(backlog)) != last:
            changes.append((minute, desired))
        last = desired
    return changes


@pytest.mark.parametrize("has_restarts", [False, True], ids=["undisturbed", "killed every minute"])
@pytest.mark.parametrize("time_scale", [1.0, 60.0], ids=["scale 1", "scale 60"])
def test_cycle_goes_to_three_and_back(tmp_path: Path, time_scale: float, has_restarts: bool) -> None:
    async def inside() -> None:
        cycle = Cycle(tmp_path, time_scale)
        changes = await live(cycle, has_restarts=has_restarts)
        assert changes == [(7, 1), (12, 3), (50, 1), (90, 0)]
        assert await cycle.causes() == [
            ("1.", "wake", "Successful"),
            ("3.", "tracking", "Successful"),
            ("1.", "tracking", "Successful"),
            ("0.", "tracking", "Successful"),
        ]
        cycle.database.close()

    asyncio.run(inside())
