"""The CloudWatch alarms that a target-tracking policy owns: "AlarmHigh" scales out, "AlarmLow" scales in."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from botocore.loaders import Loader
from botocore.model import ServiceModel

from endpoint.alarms.validation import validate_alarm
from endpoint.autoscaling.decisions import LOW_RATIO
from endpoint.autoscaling.policy_rules import UNPUBLISHED_METRICS, Configuration
from endpoint.autoscaling.resources import invalid, variant_of
from endpoint.autoscaling.store import Store
from endpoint.aws.constraints import violations
from endpoint.aws.errors import AwsError

logger = logging.getLogger(__name__)

_HIGH_PERIODS = 3
_LOW_S = 900
"""Seconds for which a metric has to be low, in periods of a minute."""
_LOW_PERIODS_OF_HIGH_RESOLUTION = 30


class Alarms(Protocol):
    """CloudWatch's alarms, of which the policies' are some."""

    async def put(self, parameters: dict[str, Any]) -> Any:
        """Do as PutMetricAlarm: an identical alarm stays as it is. Raises AwsError."""

    async def delete(self, names: Sequence[str]) -> None:
        """Do as DeleteAlarms: names of no alarm are no error."""

    def arn(self, name: str) -> str:
        """Return the ARN of an alarm, whether or not there is one."""


class AlarmChanges:
    """Makes the changes of alarms that the store has written down with the changes of their policies."""

    def __init__(self, store: Store, alarms: Alarms) -> None:
        self._store = store
        self._alarms = alarms
        self._lock = asyncio.Lock()

    async def make(self) -> None:
        """Make all that are left. Whoever has changed policies calls it, and once when the gateway starts."""
        async with self._lock:
            for change in await self._store.alarm_changes():
                try:
                    if change.parameters is None:
                        await self._alarms.delete([change.name])
                    else:
                        await self._alarms.put(change.parameters)
                except AwsError as error:
                    logger.error("alarm %s was refused, so that its policy can't scale by it: %s", change.name, error)
                await self._store.forget_alarm_change(change)


def new_alarms(resource_id: str, action_arn: str, configuration: Configuration) -> list[dict[str, Any]]:
    """Return PutMetricAlarm's parameters for the alarms of a policy, under new names, "AlarmHigh" first."""
    metric = _metric(resource_id, configuration)
    high_resolution = metric["Period"] < 60
    low_periods = _LOW_PERIODS_OF_HIGH_RESOLUTION if high_resolution else _LOW_S // metric["Period"]
    target = configuration["TargetValue"]
    alarms = [("AlarmHigh", "GreaterThanThreshold", target, _HIGH_PERIODS)]
    if not configuration.get("DisableScaleIn", False):
        # Rounded to what a decimal fraction has: 70 gives 63, not 63.00000000000001.
        alarms.append(("AlarmLow", "LessThanThreshold", float(f"{LOW_RATIO * target:.15g}"), low_periods))
    return [
        metric
        | {
            "AlarmName": f"TargetTracking-{resource_id}-{kind}-{uuid.uuid4()}",
            "AlarmDescription": f"DO NOT EDIT OR DELETE. For TargetTrackingScaling policy {action_arn}.",
            "AlarmActions": [action_arn],
            "ComparisonOperator": comparison,
            "Threshold": threshold,
            "EvaluationPeriods": periods,
        }
        for kind, comparison, threshold, periods in alarms
    ]


def check_alarms(alarms: Sequence[dict[str, Any]], region: str) -> None:
    """Check that CloudWatch will take the alarms of a policy, before the policy is written down. Raises AwsError."""
    for alarm in alarms:
        if found := list(violations(_put_metric_alarm_shape(), alarm)):
            raise invalid(f"The customized metric specification is not valid. {'; '.join(found)}")
        try:
            validate_alarm(alarm, region)
        except AwsError as error:
            raise invalid(f"The customized metric specification is not valid. {error.message}") from None


@cache
def _put_metric_alarm_shape() -> Any:
    loader = Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
    model = ServiceModel(loader.load_service_model("cloudwatch", "service-2"), "cloudwatch")
    return model.operation_model("PutMetricAlarm").input_shape


def _metric(resource_id: str, configuration: Configuration) -> dict[str, Any]:
    """Return the metric, the statistic and the period of a policy's alarms."""
    if predefined := configuration.get("PredefinedMetricSpecification"):
        name, statistic, period = UNPUBLISHED_METRICS[predefined["PredefinedMetricType"]]
        endpoint, variant = variant_of(resource_id)
        dimensions = [{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": variant}]
        return {
            "Namespace": "AWS/SageMaker",
            "MetricName": name,
            "Dimensions": dimensions,
            "Statistic": statistic,
            "Period": period,
        }
    customized = configuration["CustomizedMetricSpecification"]
    names = ("Namespace", "MetricName", "Dimensions", "Statistic", "Unit")
    return {name: customized[name] for name in names if name in customized} | {"Period": 60}
