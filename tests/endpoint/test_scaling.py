"""Scaling to zero and back over AWS's API, by unmodified boto3 and AWS's two policies for asynchronous endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from endpoint.autoscaling.decisions import decide
from endpoint.autoscaling.recording import read_records
from testing.endpoint.endpoint_up import EndpointUp
from testing.server import eventually

DIMENSION = "sagemaker:variant:DesiredInstanceCount"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointUp]:
    """Start an endpoint process for which a minute is a tenth of a second."""
    directory = tmp_path_factory.mktemp("up")
    made = EndpointUp(directory, "--time-scale", "600", "--record-scaling", str(directory / "decisions.jsonl"))
    try:
        made.make_places()
        yield made
    finally:
        made.close()


def scale(up: EndpointUp, name: str) -> None:
    """Give an endpoint a policy that tracks its backlog, and one that wakes it."""
    autoscaling = up.client("application-autoscaling")
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{name}/variant/main",
        "ScalableDimension": DIMENSION,
    }
    metric = {"Namespace": "AWS/SageMaker", "Dimensions": [{"Name": "EndpointName", "Value": name}]}
    autoscaling.register_scalable_target(**target, MinCapacity=0, MaxCapacity=2)
    backlog = metric | {"MetricName": "ApproximateBacklogSizePerInstance", "Statistic": "Average"}
    autoscaling.put_scaling_policy(
        **target,
        PolicyName="tracking",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 5.0,
            "CustomizedMetricSpecification": backlog,
            "ScaleInCooldown": 60,
        },
    )
    wake = autoscaling.put_scaling_policy(
        **target,
        PolicyName="wake",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration={
            "AdjustmentType": "ChangeInCapacity",
            "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
        },
    )
    up.client("cloudwatch").put_metric_alarm(
        **metric,
        AlarmName=f"{name} waits",
        MetricName="HasBacklogWithoutCapacity",
        Statistic="Average",
        Period=60,
        EvaluationPeriods=2,
        Threshold=1.0,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        AlarmActions=[wake["PolicyARN"]],
    )


def instances(up: EndpointUp, name: str) -> int:
    described = up.client("sagemaker").describe_endpoint(EndpointName=name)
    count: int = described["ProductionVariants"][0]["CurrentInstanceCount"]
    return count


def activities(up: EndpointUp, name: str) -> list[dict[str, Any]]:
    """Return the endpoint's activities, the oldest first."""
    answer = up.client("application-autoscaling").describe_scaling_activities(
        ServiceNamespace="sagemaker", ResourceId=f"endpoint/{name}/variant/main", ScalableDimension=DIMENSION
    )
    return list(reversed(answer["ScalingActivities"]))


def test_idle_endpoint_sleeps_and_request_wakes_it(up: EndpointUp) -> None:
    up.make_endpoint("e")
    scale(up, "e")
    eventually(lambda: instances(up, "e") == 0)
    assert up.submit("e", body=b"good morning").ended().outputs()[0]["body"] == b"good morning"
    eventually(lambda: [each["StatusCode"] for each in activities(up, "e")[:2]] == ["Successful"] * 2)
    asleep, awake = activities(up, "e")[:2]
    assert asleep["Description"] == "Setting desired instance count to 0."
    assert asleep["Cause"].endswith(" in state ALARM triggered policy tracking")
    assert awake["Description"] == "Setting desired instance count to 1."
    assert awake["Cause"] == "monitor alarm e waits in state ALARM triggered policy wake"
    assert awake["StatusMessage"] == (
        "Successfully set desired instance count to 1. Change successfully fulfilled by sagemaker."
    )


def test_gateway_killed_while_asleep_wakes_endpoint(up: EndpointUp) -> None:
    up.make_endpoint("killed")
    scale(up, "killed")
    eventually(lambda: instances(up, "killed") == 0)
    sent = up.submit("killed")
    up.kill()
    up.start()
    assert sent.ended().outputs()[0]["body"] == b"input"
    assert "internal error" not in up.log() and "Traceback" not in up.log()


def test_recorded_decisions_of_gateway_are_made_again(up: EndpointUp) -> None:
    up.make_endpoint("recorded")
    scale(up, "recorded")
    eventually(lambda: instances(up, "recorded") == 0)
    path: Path = up.directory / "decisions.jsonl"
    records = [each for each in read_records(path) if each.resource_id == "endpoint/recorded/variant/main"]
    assert any(each.decision.capacity == 0 for each in records)
    assert all(decide(each.target, each.triggers, each.cooldowns, each.now) == each.decision for each in records)
