"""Targets, policies, scheduled actions and activities as the Describe operations show them."""

from __future__ import annotations

from typing import Any

from endpoint.autoscaling.records import Activity, ScalableTarget, ScalingPolicy, ScheduledAction
from endpoint.autoscaling.resources import DIMENSION, NAMESPACE

CONFIGURATION = {
    "StepScaling": "StepScalingPolicyConfiguration",
    "TargetTrackingScaling": "TargetTrackingScalingPolicyConfiguration",
}
"""Names of the configurations by the policies' types."""


def describe_target(target: ScalableTarget) -> dict[str, Any]:
    return _resource(target.resource_id) | {
        "ScalableTargetARN": target.arn,
        "MinCapacity": target.min_capacity,
        "MaxCapacity": target.max_capacity,
        "RoleARN": target.role_arn,
        "CreationTime": target.created_at,
        "SuspendedState": {
            "DynamicScalingInSuspended": target.is_in_suspended,
            "DynamicScalingOutSuspended": target.is_out_suspended,
            "ScheduledScalingSuspended": target.is_scheduled_suspended,
        },
    }


def describe_policy(policy: ScalingPolicy, alarm_arns: dict[str, str]) -> dict[str, Any]:
    """Describe a policy; `alarm_arns` has the ARNs of its alarms by their names."""
    return _resource(policy.resource_id) | {
        "PolicyARN": policy.arn,
        "PolicyName": policy.name,
        "PolicyType": policy.type,
        CONFIGURATION[policy.type]: policy.configuration,
        "Alarms": describe_alarms(alarm_arns),
        "CreationTime": policy.created_at,
    }


def describe_alarms(alarm_arns: dict[str, str]) -> list[dict[str, str]]:
    return [{"AlarmName": name, "AlarmARN": arn} for name, arn in alarm_arns.items()]


def describe_action(action: ScheduledAction) -> dict[str, Any]:
    return _resource(action.resource_id) | {
        "ScheduledActionName": action.name,
        "ScheduledActionARN": action.arn,
        "Schedule": action.schedule,
        "Timezone": action.timezone,
        "StartTime": action.start_at,
        "EndTime": action.end_at,
        "ScalableTargetAction": {"MinCapacity": action.min_capacity, "MaxCapacity": action.max_capacity},
        "CreationTime": action.created_at,
    }


def describe_activity(activity: Activity) -> dict[str, Any]:
    return _resource(activity.resource_id) | {
        "ActivityId": activity.id,
        "Description": activity.description,
        "Cause": activity.cause,
        "StartTime": activity.started_at,
        "EndTime": activity.ended_at,
        "StatusCode": activity.status,
        "StatusMessage": activity.message,
        "Details": activity.details,
        "NotScaledReasons": list(activity.not_scaled_reasons) or None,
    }


def _resource(resource_id: str) -> dict[str, Any]:
    return {"ServiceNamespace": NAMESPACE, "ResourceId": resource_id, "ScalableDimension": DIMENSION}
