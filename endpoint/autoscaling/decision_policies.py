"""Policies as the wire has them, for `decide`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from endpoint.autoscaling.decisions import Policy, Step, StepPolicy, TrackingPolicy
from endpoint.autoscaling.records import PolicyType

DEFAULT_COOLDOWN_S = 300.0
"""Seconds of each cooldown of a SageMaker variant's policy that doesn't say."""


def decision_policy(
    name: str, policy_type: PolicyType, configuration: Mapping[str, Any], real_s: Callable[[float], float]
) -> Policy:
    """Return a policy by its StepScalingPolicyConfiguration or TargetTrackingScalingPolicyConfiguration.

    `real_s` returns seconds of the clock that `decide` is given for seconds of a configuration.
    """
    if policy_type == "TargetTrackingScaling":
        return TrackingPolicy(
            name=name,
            target=configuration["TargetValue"],
            scale_out_cooldown_s=real_s(configuration.get("ScaleOutCooldown", DEFAULT_COOLDOWN_S)),
            scale_in_cooldown_s=real_s(configuration.get("ScaleInCooldown", DEFAULT_COOLDOWN_S)),
            can_scale_in=not configuration.get("DisableScaleIn", False),
        )
    steps = [
        Step(
            lower=step.get("MetricIntervalLowerBound"),
            upper=step.get("MetricIntervalUpperBound"),
            adjustment=step["ScalingAdjustment"],
        )
        for step in configuration["StepAdjustments"]
    ]
    return StepPolicy(
        name=name,
        adjustment_type=configuration["AdjustmentType"],
        steps=tuple(steps),
        cooldown_s=real_s(configuration.get("Cooldown", DEFAULT_COOLDOWN_S)),
        min_magnitude=configuration.get("MinAdjustmentMagnitude", 1),
        aggregation=configuration.get("MetricAggregationType", "Average"),
    )
