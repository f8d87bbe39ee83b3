"""The recommended scaling policies of an asynchronous endpoint, to zero and back, and the calls that make them.

`scaling_policies.json` has them in the words of AWS's API; docs/scaling.md says why they are as they are.

    python examples/scaling_policies.py ENDPOINT VARIANT --max-capacity 4 --concurrency 8
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import boto3

TRACKED_LOAD = 0.8
"""Part of an instance's places that target tracking keeps busy. The metric counts what is worked on: with a target of
all places a queue never ends, and with a larger one busy instances are ended while requests wait."""
POLICIES = Path(__file__).with_name("scaling_policies.json")


def scaling_calls(endpoint: str, variant: str, max_capacity: int, concurrency: int) -> list[tuple[str, dict[str, Any]]]:
    """Return boto3's methods and their parameters, in order. `{policy NAME}` among alarm actions stands for an ARN.

    `concurrency` is the endpoint's MaxConcurrentInvocationsPerInstance.
    """
    text = POLICIES.read_text().replace("{endpoint}", endpoint).replace("{variant}", variant)
    document = json.loads(text)
    variant_of = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/{variant}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    calls = [
        ("register_scalable_target", variant_of | document["RegisterScalableTarget"] | {"MaxCapacity": max_capacity})
    ]
    for policy in document["PutScalingPolicy"]:
        if policy["PolicyType"] == "TargetTrackingScaling":
            policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] = TRACKED_LOAD * concurrency
        calls.append(("put_scaling_policy", variant_of | policy))
    calls += [("put_metric_alarm", alarm) for alarm in document["PutMetricAlarm"]]
    calls += [("put_scheduled_action", variant_of | action) for action in document["PutScheduledAction"]]
    return calls


def put_scaling_policies(endpoint: str, variant: str, max_capacity: int, concurrency: int) -> None:
    """Register a variant and make its policies and alarms; those that are there already are replaced."""
    scaling, cloudwatch = boto3.client("application-autoscaling"), boto3.client("cloudwatch")
    arns: dict[str, str] = {}
    for method, parameters in scaling_calls(endpoint, variant, max_capacity, concurrency):
        if method == "put_metric_alarm":
            actions = [arns.get(action, action) for action in parameters["AlarmActions"]]
            cloudwatch.put_metric_alarm(**parameters | {"AlarmActions": actions})
            continue
        answer = getattr(scaling, method)(**parameters)
        if method == "put_scaling_policy":
            arns[f"{{policy {parameters['PolicyName']}}}"] = answer["PolicyARN"]


def delete_scaling_policies(endpoint: str, variant: str) -> None:
    """Delete the alarms, and deregister the variant, which deletes its policies. The alarms would outlive them."""
    calls = scaling_calls(endpoint, variant, 1, 1)
    names = [parameters["AlarmName"] for method, parameters in calls if method == "put_metric_alarm"]
    boto3.client("cloudwatch").delete_alarms(AlarmNames=names)
    target = {key: calls[0][1][key] for key in ("ServiceNamespace", "ResourceId", "ScalableDimension")}
    boto3.client("application-autoscaling").deregister_scalable_target(**target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make an endpoint scale to zero and back.")
    parser.add_argument("endpoint")
    parser.add_argument("variant", nargs="?", default="AllTraffic")
    parser.add_argument("--max-capacity", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=4, help="the endpoint's MaxConcurrentInvocationsPerInstance")
    options = parser.parse_args()
    put_scaling_policies(options.endpoint, options.variant, options.max_capacity, options.concurrency)


if __name__ == "__main__":
    main()
