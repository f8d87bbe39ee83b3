"""Rules for the configurations of scaling policies beyond those for each parameter by itself, in AWS's words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from endpoint.alarms.times import java_double
from endpoint.autoscaling.resources import DIMENSION, LOCAL, invalid
from endpoint.aws.errors import AwsError

MAX_STEPS = 20
MIN_TARGET, MAX_TARGET = 8.51592e-109, 1.174271e108
"""Least and greatest TargetValue, as AWS's error names them."""

UNPUBLISHED_METRICS = {
    "SageMakerVariantInvocationsPerInstance": ("InvocationsPerInstance", "Sum", 60),
    "SageMakerVariantConcurrentRequestsPerModelHighResolution": ("ConcurrentRequestsPerModel", "Average", 20),
}
"""Predefined metrics of variants: name, statistic, and the alarms' period in seconds. SageMaker doesn't publish them
for asynchronous endpoints, so that such a policy never scales one."""

Configuration = dict[str, Any]


def merge_step(old: Configuration | None, given: Configuration) -> Configuration:
    """Return a step policy's configuration after a Put: what is required stays, other members that aren't given go.

    Raises AwsError.
    """
    merged = _kept(old, ("AdjustmentType", "StepAdjustments")) | given
    if "AdjustmentType" not in merged:
        raise invalid("Adjustment type must be specified")
    steps = merged.get("StepAdjustments", [])
    if not steps:
        raise invalid("There must be at least one step adjustment")
    if len(steps) > MAX_STEPS:
        raise AwsError("LimitExceededException", f"A scaling policy can have at most {MAX_STEPS} step adjustments")
    _check_cooldowns(merged, "Cooldown")
    if "MinAdjustmentMagnitude" in merged:
        if merged["AdjustmentType"] != "PercentChangeInCapacity":
            raise invalid("Minimum adjustment magnitude is only allowed for adjustment type PercentChangeInCapacity")
        if merged["MinAdjustmentMagnitude"] < 1:
            raise invalid("Minimum adjustment magnitude must be positive")
    if merged["AdjustmentType"] == "ExactCapacity" and any(step["ScalingAdjustment"] < 0 for step in steps):
        raise invalid("Scaling adjustment cannot be less than 0 when adjustment type is ExactCapacity")
    _check_intervals(steps)
    return merged


def _check_intervals(steps: list[dict[str, Any]]) -> None:
    lowers = [step["MetricIntervalLowerBound"] for step in steps if "MetricIntervalLowerBound" in step]
    uppers = [step["MetricIntervalUpperBound"] for step in steps if "MetricIntervalUpperBound" in step]
    if any(not step.keys() & {"MetricIntervalLowerBound", "MetricIntervalUpperBound"} for step in steps):
        raise invalid("A step adjustment must have a lower bound or an upper bound")
    for bounds, side, sign in ((lowers, "lower", "negative"), (uppers, "upper", "positive")):
        if len(bounds) < len(steps) - 1:
            raise invalid(f"At most one step adjustment may have an unspecified {side} bound")
        if len(bounds) == len(steps) and any(bound < 0 if side == "lower" else bound > 0 for bound in bounds):
            raise invalid(
                f"There must be a step adjustment with an unspecified {side} bound when one step adjustment has a "
                f"{sign} {side} bound"
            )
    intervals = sorted(
        (step.get("MetricIntervalLowerBound", -math.inf), step.get("MetricIntervalUpperBound", math.inf))
        for step in steps
    )
    if any(lower >= upper for lower, upper in intervals):
        raise invalid("The lower bound of a step adjustment must be less than its upper bound")
    for (_, end), (start, _) in pairwise(intervals):
        if start < end:
            raise invalid("Step adjustment intervals cannot overlap")
        if start > end:
            raise invalid("Step adjustment intervals cannot have gaps between them")


def merge_tracking(old: Configuration | None, given: Configuration) -> Configuration:
    """Return a target-tracking policy's configuration after a Put: the metric stays if none is given.

    Raises AwsError.
    """
    names = ("PredefinedMetricSpecification", "CustomizedMetricSpecification")
    merged = given if any(name in given for name in names) else _kept(old, names) | given
    target = merged["TargetValue"]
    if not MIN_TARGET <= target <= MAX_TARGET:
        raise invalid(
            "For target tracking scaling, target value must be between "
            f"'{java_double(MIN_TARGET)}' and '{java_double(MAX_TARGET)}', but was '{java_double(target)}'."
        )
    _check_cooldowns(merged, "ScaleOutCooldown", "ScaleInCooldown")
    predefined, customized = (merged.get(name) for name in names)
    if predefined is None and customized is None:
        raise invalid(f"{' or '.join(names)} must be set for target tracking scaling.")
    if predefined is not None and customized is not None:
        raise invalid(f"Only one of {' or '.join(names)} can be set for target tracking scaling.")
    if predefined is not None:
        _check_predefined(predefined)
    if customized is not None:
        _check_customized(customized)
    return merged


def _check_predefined(specification: dict[str, Any]) -> None:
    metric = specification["PredefinedMetricType"]
    if metric not in UNPUBLISHED_METRICS:
        raise invalid(f"Predefined metric type {metric} is not supported for scalable dimension {DIMENSION}.")
    if "ResourceLabel" in specification:
        raise invalid(f"ResourceLabel is not supported for predefined metric type {metric}.")


def _check_customized(specification: dict[str, Any]) -> None:
    if "Metrics" in specification:
        raise invalid(f"CustomizedMetricSpecification.Metrics (metric math) {LOCAL}: give one metric.")
    missing = [name for name in ("MetricName", "Namespace", "Statistic") if not specification.get(name)]
    if missing:
        raise invalid(f"The customized metric specification is not valid. {missing[0]} must be specified.")


def check_metric_is_free(given: Configuration, others: Iterable[Configuration]) -> None:
    """Refuse a second target-tracking policy of one metric. Raises AwsError."""
    if any(_metric(given) == _metric(other) for other in others):
        raise invalid("Only one TargetTrackingScaling policy for a given metric specification is allowed.")


def _metric(configuration: Configuration) -> tuple[Any, ...]:
    """Return what makes two policies' metrics the same."""
    if predefined := configuration.get("PredefinedMetricSpecification"):
        return (predefined["PredefinedMetricType"],)
    metric = configuration["CustomizedMetricSpecification"]
    dimensions = sorted((each["Name"], each["Value"]) for each in metric.get("Dimensions", []))
    return metric["Namespace"], metric["MetricName"], metric["Statistic"], dimensions


def _kept(old: Configuration | None, names: Iterable[str]) -> Configuration:
    return {name: old[name] for name in names if name in old} if old else {}


def _check_cooldowns(configuration: Mapping[str, Any], *names: str) -> None:
    if any(configuration.get(name, 0) < 0 for name in names):
        raise invalid("Cooldown must be nonnegative")
