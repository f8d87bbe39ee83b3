"""The records of Application Auto Scaling: targets, policies, scheduled actions, activities.

All targets are variants of SageMaker's endpoints with one dimension, so that a resource id names a target. Times are
wall-clock seconds since the epoch, except those of scheduled actions, which are the platform's calendar's: `Calendar`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from endpoint.autoscaling.decisions import Cooldown

PolicyType = Literal["StepScaling", "TargetTrackingScaling"]
ActivityStatus = Literal["Pending", "InProgress", "Successful", "Overridden", "Unfulfilled", "Failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalableTarget:
    resource_id: str
    """Name of the variant: `endpoint/E/variant/V`."""
    arn: str
    created_at: float
    min_capacity: int
    max_capacity: int
    role_arn: str
    is_in_suspended: bool = False
    is_out_suspended: bool = False
    is_scheduled_suspended: bool = False
    is_unchecked: bool = True
    """Whether its bounds were set and the capacity hasn't been brought within them since."""
    cooldowns: Mapping[str, Cooldown] = field(default_factory=dict)
    """Cooldowns by the policies' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPolicy:
    resource_id: str
    name: str
    arn: str
    created_at: float
    type: PolicyType
    configuration: dict[str, Any]
    """StepScalingPolicyConfiguration or TargetTrackingScalingPolicyConfiguration as it was given."""
    action_arn: str
    """ARN in the actions of a target-tracking policy's alarms: its own with a suffix. A step policy's is its own."""
    alarms: tuple[str, ...] = ()
    """Names of the alarms that belong to a target-tracking policy, "AlarmHigh" first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmChange:
    """A change of a policy's alarms that is still to be made: an alarm to put, or to delete."""

    seq: int
    name: str
    parameters: dict[str, Any] | None
    """Parameters of PutMetricAlarm; None: the alarm is to be deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledAction:
    """An action, whose `start_at`, `end_at`, `last_run_at` and `next_run_at` are seconds of the platform's calendar."""

    resource_id: str
    name: str
    arn: str
    created_at: float
    schedule: str
    timezone: str | None = None
    start_at: float | None = None
    end_at: float | None = None
    min_capacity: int | None = None
    max_capacity: int | None = None
    last_run_at: float | None = None
    """Time for which it ran last, or was skipped."""
    next_run_at: float | None = None
    """Time at which it is due; None: never again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    id: str
    resource_id: str
    description: str
    cause: str
    started_at: float
    status: ActivityStatus
    ended_at: float | None = None
    message: str | None = None
    details: str | None = None
    not_scaled_reasons: tuple[dict[str, Any], ...] = ()
    """NotScaledReasons as they are on the wire. Activities that have some are shown only on request."""
    policy: str | None = None
    """Name of the policy that decided it, whose cooldown begins with its end."""
    capacity: int | None = None
    """Instances that it asked for."""
