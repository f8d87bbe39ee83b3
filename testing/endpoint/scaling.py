"""One variant of an endpoint of `EndpointUp` that scales: its target, its policies, and what becomes of them."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

from examples.scaling_policies import scaling_calls
from testing.endpoint.endpoint_up import EndpointUp
from testing.server import TIMEOUT_S, eventually

DIMENSION = "sagemaker:variant:DesiredInstanceCount"
VARIANT = "main"
"""Name of the variants that `EndpointUp` makes."""


class Scaling:
    """Has no state but what the endpoint has."""

    def __init__(self, up: EndpointUp, endpoint: str) -> None:
        self.up = up
        self.endpoint = endpoint
        self.resource_id = f"endpoint/{endpoint}/variant/{VARIANT}"
        self.target = {"ServiceNamespace": "sagemaker", "ResourceId": self.resource_id, "ScalableDimension": DIMENSION}

    @property
    def client(self) -> Any:
        """Application Auto Scaling's client."""
        return self.up.client("application-autoscaling")

    # What is asked for

    def register(self, **parameters: Any) -> None:
        self.client.register_scalable_target(**self.target, **parameters)

    def put_documented(self, *, max_capacity: int, target: float) -> None:
        """Make the policies of AWS's guide: a step policy that leaves zero, and target tracking of the backlog."""
        self.register(MinCapacity=0, MaxCapacity=max_capacity)
        self.put_wake()
        self.client.put_scaling_policy(
            **self.target,
            PolicyName="backlog",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": target,
                "CustomizedMetricSpecification": self._metric("ApproximateBacklogSizePerInstance"),
                "ScaleInCooldown": 60,
                "ScaleOutCooldown": 60,
            },
        )

    def put_wake(self) -> None:
        """Make the step policy that leaves zero, and its alarm."""
        policy = self.client.put_scaling_policy(
            **self.target,
            PolicyName="wake",
            PolicyType="StepScaling",
            StepScalingPolicyConfiguration={
                "AdjustmentType": "ChangeInCapacity",
                "MetricAggregationType": "Average",
                "Cooldown": 300,
                "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
            },
        )
        self.up.client("cloudwatch").put_metric_alarm(
            AlarmName=self.wake_alarm,
            **self._metric("HasBacklogWithoutCapacity"),
            Period=60,
            EvaluationPeriods=2,
            DatapointsToAlarm=2,
            Threshold=1,
            ComparisonOperator="GreaterThanOrEqualToThreshold",
            TreatMissingData="missing",
            AlarmActions=[policy["PolicyARN"]],
        )

    def put_recommended(self, *, max_capacity: int, concurrency: int) -> None:
        """Make the policies of examples/scaling_policies.json."""
        arns: dict[str, str] = {}
        for method, parameters in scaling_calls(self.endpoint, VARIANT, max_capacity, concurrency):
            if method == "put_metric_alarm":
                actions = [arns.get(action, action) for action in parameters["AlarmActions"]]
                self.up.client("cloudwatch").put_metric_alarm(**parameters | {"AlarmActions": actions})
                continue
            answer = getattr(self.client, method)(**parameters)
            if method == "put_scaling_policy":
                arns[f"{{policy {parameters['PolicyName']}}}"] = answer["PolicyARN"]

    # What has become of it

    @property
    def wake_alarm(self) -> str:
        return f"{self.endpoint}-wake"

    def tracking_alarms(self) -> list[str]:
        """Return the names of the alarms that target tracking owns, the high one first."""
        policies = self.client.describe_scaling_policies(**self.target)["ScalingPolicies"]
        return [alarm["AlarmName"] for policy in policies for alarm in policy["Alarms"]]

    def alarms(self) -> dict[str, str]:
        """Return the states of all alarms by their names."""
        pages = self.up.client("cloudwatch").get_paginator("describe_alarms").paginate()
        return {alarm["AlarmName"]: alarm["StateValue"] for page in pages for alarm in page["MetricAlarms"]}

    def activities(self, **parameters: Any) -> list[dict[str, Any]]:
        """Return the activities, the oldest first."""
        pages = self.client.get_paginator("describe_scaling_activities").paginate(**self.target, **parameters)
        found = [activity for page in pages for activity in page["ScalingActivities"]]
        return found[::-1]

    def capacity(self) -> tuple[str, int, int]:
        """Return the endpoint's status, and the instances that are wanted and that serve."""
        described = self.up.client("sagemaker").describe_endpoint(EndpointName=self.endpoint)
        [variant] = described["ProductionVariants"]
        return described["EndpointStatus"], variant["DesiredInstanceCount"], variant["CurrentInstanceCount"]

    def wait_for(self, instances: int, within_s: float = TIMEOUT_S) -> None:
        """Wait until the endpoint is in service with so many instances, and each activity has its end."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: self.capacity() == ("InService", instances, instances), within_s)
            eventually(lambda: all("EndTime" in activity for activity in self.activities()), within_s)
            return
        raise AssertionError(f"not {instances} within {within_s:g} s: {self.capacity()}\n{self.story()}")

    def story(self) -> str:
        """Tell what happened, an activity a line, and the alarms."""
        lines = [
            f"{_clock(activity['StartTime'])} to {_clock(activity.get('EndTime'))} {activity['StatusCode']}: "
            f"{activity['Description']} {activity['Cause']} {activity.get('StatusMessage', '')} "
            f"{activity.get('NotScaledReasons', '')}"
            for activity in self.activities(IncludeNotScaledActivities=True)
        ]
        return "\n".join([*lines, str(self.alarms())])

    def _metric(self, name: str) -> dict[str, Any]:
        return {
            "Namespace": "AWS/SageMaker",
            "MetricName": name,
            "Dimensions": [{"Name": "EndpointName", "Value": self.endpoint}],
            "Statistic": "Average",
        }


def _clock(time: datetime | None) -> str:
    return "…" if time is None else f"{time:%H:%M:%S.%f}"[:-3]
