"""Scaling policies as AWS's API takes them, and what the endpoint's decisions need of them.

A document of policies has the parameters of RegisterScalableTarget, PutScalingPolicy, PutMetricAlarm and
PutScheduledAction under these names, without the resource's name; `{endpoint}` and `{variant}` stand for names, and
`{policy NAME}` among an alarm's actions for the ARN of a policy. `examples/scaling_policies.json` is one.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endpoint.alarms.alarm import Alarm
from endpoint.autoscaling.decision_policies import decision_policy
from endpoint.autoscaling.decisions import Policy
from endpoint.autoscaling.tracking_alarms import new_alarms
from endpoint.cloudwatch.metrics import GAUGES

from .inputs import UnusableInputs

ROOT = Path(__file__).resolve().parent.parent.parent
Document = dict[str, Any]

_STATISTICS = ("Average", "Minimum", "Maximum", "Sum")

TRACKED_LOAD = 0.8
"""Part of an instance's places that the recommended policies keep busy. With all of them busy, a queue never ends."""


class UnusablePolicies(UnusableInputs):
    """A document of policies can't be simulated; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyAlarm:
    """An alarm whose action is a policy."""

    alarm: Alarm
    metric: str
    policy: Policy
    is_above: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySet:
    """A document, and what it means."""

    document: Document
    min_capacity: int
    max_capacity: int
    policies: tuple[Policy, ...]
    alarms: tuple[PolicyAlarm, ...]
    schedules: tuple[dict[str, Any], ...]
    """Parameters of PutScheduledAction."""


def documented(target: float = 5.0, max_capacity: int = 4) -> Document:
    """Return what AWS's documentation has for asynchronous endpoints: its two policies, with cooldowns of 300 s."""
    return {
        "RegisterScalableTarget": {"MinCapacity": 0, "MaxCapacity": max_capacity},
        "PutScalingPolicy": [wake_policy(cooldown_s=300), tracking_policy(target, in_s=300, out_s=300)],
        "PutMetricAlarm": [wake_alarm(datapoints=2, periods=2)],
        "PutScheduledAction": [],
    }


def recommended(concurrency: int = 4, max_capacity: int = 4) -> Document:
    """Return the recommended policies, of examples/scaling_policies.json, for instances with so many places."""
    document: Document = json.loads((ROOT / "examples" / "scaling_policies.json").read_text())
    document["RegisterScalableTarget"]["MaxCapacity"] = max_capacity
    for policy in document["PutScalingPolicy"]:
        if policy["PolicyType"] == "TargetTrackingScaling":
            policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] = TRACKED_LOAD * concurrency
    return document


def wake_policy(cooldown_s: int, instances: int = 1) -> Document:
    return step_policy("wake", [(0.0, None, instances)], cooldown_s)


def step_policy(
    name: str, steps: list[tuple[float | None, float | None, int]], cooldown_s: int, kind: str = "ChangeInCapacity"
) -> Document:
    """Return the parameters of a step policy; a step is its lower bound, its upper bound, and the change."""
    adjustments = []
    for lower, upper, change in steps:
        bounds = {"MetricIntervalLowerBound": lower, "MetricIntervalUpperBound": upper}
        adjustments.append({key: bound for key, bound in bounds.items() if bound is not None})
        adjustments[-1]["ScalingAdjustment"] = change
    configuration = {
        "AdjustmentType": kind,
        "MetricAggregationType": "Average",
        "Cooldown": cooldown_s,
        "StepAdjustments": adjustments,
    }
    return {"PolicyName": name, "PolicyType": "StepScaling", "StepScalingPolicyConfiguration": configuration}


def tracking_policy(target: float, in_s: int, out_s: int, can_scale_in: bool = True) -> Document:
    metric = {
        "MetricName": "ApproximateBacklogSizePerInstance",
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": "{endpoint}"}],
        "Statistic": "Average",
    }
    configuration = {
        "TargetValue": target,
        "CustomizedMetricSpecification": metric,
        "ScaleInCooldown": in_s,
        "ScaleOutCooldown": out_s,
    }
    if not can_scale_in:
        configuration["DisableScaleIn"] = True
    return {
        "PolicyName": "backlog",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": configuration,
    }


def wake_alarm(datapoints: int, periods: int, period_s: int = 60) -> Document:
    return alarm(
        "wake", "HasBacklogWithoutCapacity", "GreaterThanOrEqualToThreshold", 1.0, datapoints, periods, period_s
    )


def alarm(
    policy: str, metric: str, comparison: str, threshold: float, datapoints: int, periods: int, period_s: int = 60
) -> Document:
    """Return the parameters of an alarm on a metric of the endpoint, whose action is a policy."""
    return {
        "AlarmName": f"{{endpoint}}-{policy}",
        "MetricName": metric,
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": "{endpoint}"}],
        "Statistic": "Average",
        "Period": period_s,
        "EvaluationPeriods": periods,
        "DatapointsToAlarm": datapoints,
        "Threshold": threshold,
        "ComparisonOperator": comparison,
        "TreatMissingData": "missing",
        "AlarmActions": [f"{{policy {policy}}}"],
    }


def read_policies(path: Path) -> Document:
    """Read a document. Raises UnusablePolicies."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UnusablePolicies(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise UnusablePolicies(f"{path}: not an object")
    return document


def understand(document: Document) -> PolicySet:
    """Return what a document means. Raises UnusablePolicies for what can't be simulated."""
    try:
        bounds = document["RegisterScalableTarget"]
        policies = {each["PolicyName"]: _policy(each) for each in document.get("PutScalingPolicy", [])}
        alarms = [made for each in document.get("PutMetricAlarm", []) for made in _own_alarms(each, policies)]
        for parameters in document.get("PutScalingPolicy", []):
            if parameters["PolicyType"] == "TargetTrackingScaling":
                alarms += _tracking_alarms(parameters, policies[parameters["PolicyName"]])
        return PolicySet(
            document=copy.deepcopy(document),
            min_capacity=bounds["MinCapacity"],
            max_capacity=bounds["MaxCapacity"],
            policies=tuple(policies.values()),
            alarms=tuple(alarms),
            schedules=tuple(document.get("PutScheduledAction", [])),
        )
    except KeyError as error:
        raise UnusablePolicies(f"the document of policies has no {error}") from None
    except (TypeError, AttributeError) as error:
        raise UnusablePolicies(f"the document of policies isn't of AWS's form: {error}") from None


def _policy(parameters: Document) -> Policy:
    kind = parameters["PolicyType"]
    if kind not in ("StepScaling", "TargetTrackingScaling"):
        raise UnusablePolicies(f"{parameters['PolicyName']}: {kind} is not simulated")
    return decision_policy(parameters["PolicyName"], kind, parameters[f"{kind}PolicyConfiguration"], lambda s: s)


def _tracking_alarms(parameters: Document, policy: Policy) -> list[PolicyAlarm]:
    """Return the alarms that a target-tracking policy makes for itself."""
    given = parameters["TargetTrackingScalingPolicyConfiguration"]
    if "CustomizedMetricSpecification" not in given:
        raise UnusablePolicies(f"{policy.name}: only customised metrics are simulated, of those that endpoints publish")
    return [_alarm(each, policy) for each in new_alarms("", policy.name, given)]


def _own_alarms(parameters: Document, policies: dict[str, Policy]) -> list[PolicyAlarm]:
    made = []
    for action in parameters["AlarmActions"]:
        name = action.removeprefix("{policy ").removesuffix("}")
        if name not in policies:
            raise UnusablePolicies(
                f"{parameters['AlarmName']}: no policy {name!r}; write {{policy NAME}} as its action"
            )
        made.append(_alarm(parameters, policies[name]))
    return made


def _alarm(parameters: Document, policy: Policy) -> PolicyAlarm:
    made = Alarm(
        name=parameters["AlarmName"],
        arn="",
        configuration=parameters,
        configured_at=0.0,
        created_at=0.0,
        updated_at=0.0,
        transitioned_at=0.0,
    )
    metric = parameters["MetricName"]
    if metric not in GAUGES:
        raise UnusablePolicies(f"{made.name}: {metric} is not simulated, only {', '.join(GAUGES)}")
    if made.statistic not in _STATISTICS:
        raise UnusablePolicies(f"{made.name}: {made.statistic} is not simulated, only {', '.join(_STATISTICS)}")
    if made.period_s < 60 or made.period_s % 60:
        raise UnusablePolicies(
            f"{made.name}: a Period of {made.period_s} s is not simulated: the metrics come each minute"
        )
    is_above = made.rule.comparison.startswith("Greater")
    return PolicyAlarm(alarm=made, metric=metric, policy=policy, is_above=is_above)
