"""Calls of Application Auto Scaling's operations for one variant, by a boto3 client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

RESOURCE = "endpoint/endpoint/variant/AllTraffic"
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
VARIANT = {"ServiceNamespace": "sagemaker", "ResourceId": RESOURCE, "ScalableDimension": DIMENSION}
BACKLOG = {
    "MetricName": "ApproximateBacklogSizePerInstance",
    "Namespace": "AWS/SageMaker",
    "Dimensions": [{"Name": "EndpointName", "Value": "endpoint"}],
    "Statistic": "Average",
}
TRACKING = {"TargetValue": 5.0, "CustomizedMetricSpecification": BACKLOG}
STEP = {
    "AdjustmentType": "ChangeInCapacity",
    "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
}


def register(client: Any, **changes: Any) -> str:
    """Register the variant with bounds 0 and 4, and return the target's ARN."""
    arn: str = client.register_scalable_target(**VARIANT | {"MinCapacity": 0, "MaxCapacity": 4} | changes)[
        "ScalableTargetARN"
    ]
    return arn


def put_tracking(client: Any, name: str = "track", **configuration: Any) -> dict[str, Any]:
    """Put a target-tracking policy of the backlog."""
    answer: dict[str, Any] = client.put_scaling_policy(
        **VARIANT,
        PolicyName=name,
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=TRACKING | configuration,
    )
    return answer


def put_step(client: Any, name: str = "step", **configuration: Any) -> dict[str, Any]:
    """Put a step policy that adds one instance."""
    answer: dict[str, Any] = client.put_scaling_policy(
        **VARIANT,
        PolicyName=name,
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration=STEP | configuration,
    )
    return answer


def put_action(client: Any, name: str = "night", **parameters: Any) -> None:
    """Put a scheduled action for the far future."""
    given = {"Schedule": "at(2099-01-01T00:00:00)", "ScalableTargetAction": {"MinCapacity": 1}} | parameters
    client.put_scheduled_action(**VARIANT, ScheduledActionName=name, **given)


def policy(client: Any, name: str) -> dict[str, Any]:
    """Return a policy as DescribeScalingPolicies shows it."""
    found: dict[str, Any] = client.describe_scaling_policies(**VARIANT, PolicyNames=[name])["ScalingPolicies"][0]
    return found


def refusal(call: Callable[..., Any], *arguments: Any, **parameters: Any) -> tuple[str, str]:
    """Return the code and the message of the error that a call raises, which has status 400."""
    with pytest.raises(ClientError) as refused:
        call(*arguments, **parameters)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    return refused.value.response["Error"]["Code"], refused.value.response["Error"]["Message"]


def refused(call: Callable[..., Any], *arguments: Any, **parameters: Any) -> str:
    """Return the message of the ValidationException that a call raises."""
    code, message = refusal(call, *arguments, **parameters)
    assert code == "ValidationException"
    return message
