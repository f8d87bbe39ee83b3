"""The recommended scaling policies, put on a real endpoint by unmodified boto3. A minute takes a fifth of a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.scaling_policies import delete_scaling_policies, put_scaling_policies
from testing.endpoint.endpoint_up import EndpointUp
from testing.server import eventually

RESOURCE = {"ServiceNamespace": "sagemaker", "ResourceId": "endpoint/e/variant/main"}


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointUp]:
    """Start an endpoint process with `e`, an endpoint of one instance, as the place that boto3 takes for AWS."""
    made = EndpointUp(tmp_path, "--time-scale", "300")
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        made.make_places()
        made.make_endpoint("e")
        yield made
    finally:
        made.close()


def instances(up: EndpointUp) -> int:
    endpoint = up.client("sagemaker").describe_endpoint(EndpointName="e")
    count: int = endpoint["ProductionVariants"][0]["CurrentInstanceCount"]
    return count


def test_endpoint_goes_to_zero_and_wakes(up: EndpointUp) -> None:
    put_scaling_policies("e", "main", max_capacity=2, concurrency=4)
    eventually(lambda: instances(up) == 0)
    assert up.submit("e").ended().notice()["invocationStatus"] == "Completed"
    scaling, cloudwatch = up.client("application-autoscaling"), up.client("cloudwatch")
    activities = scaling.describe_scaling_activities(**RESOURCE)["ScalingActivities"]
    causes = [activity["Cause"].rpartition(" ")[2] for activity in reversed(activities)]
    assert causes[:2] == ["idle", "wake"]
    put_scaling_policies("e", "main", max_capacity=2, concurrency=4)
    assert len(cloudwatch.describe_alarms()["MetricAlarms"]) == 4
    delete_scaling_policies("e", "main")
    assert cloudwatch.describe_alarms()["MetricAlarms"] == []
    assert scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"] == []
