"""Scaling activities in AWS's words: how they begin, go on and end. Pure."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

from endpoint.autoscaling.decisions import NotScaled, NotScaledCode, Trigger
from endpoint.autoscaling.records import Activity, ScheduledAction
from endpoint.aws.errors import AwsError

_CAPACITY_MEMBERS: dict[NotScaledCode, str] = {
    "AlreadyAtMaxCapacity": "MaxCapacity",
    "AlreadyAtMinCapacity": "MinCapacity",
    "AlreadyAtDesiredCapacity": "CurrentCapacity",
}


def change_of_capacity(resource_id: str, capacity: int, cause: str, now: float, policy: str | None = None) -> Activity:
    """Return an activity that is still to ask for a capacity."""
    return Activity(
        id=str(uuid.uuid4()),
        resource_id=resource_id,
        description=f"Setting desired instance count to {capacity}.",
        cause=cause,
        started_at=now,
        status="Pending",
        policy=policy,
        capacity=capacity,
    )


def alarm_cause(trigger: Trigger) -> str:
    return f"monitor alarm {trigger.alarm} in state ALARM triggered policy {trigger.policy.name}"


def bounds_cause(capacity: int, desired: int) -> str:
    """Return why a capacity outside the bounds becomes `capacity`, the nearer of them."""
    return f"{'minimum' if capacity > desired else 'maximum'} capacity was set to {capacity}"


def schedule_cause(action: ScheduledAction) -> str:
    return f"scheduled action name {action.name} was triggered"


def in_progress(activity: Activity) -> Activity:
    message = f"{_successfully_set(activity)}. Waiting for change to be fulfilled by sagemaker."
    return replace(activity, status="InProgress", message=message)


def successful(activity: Activity, now: float, ended_busy: int = 0) -> Activity:
    """Return it at its end. `ended_busy` is the number of instances with requests that a scale-in has ended."""
    message = f"{_successfully_set(activity)}. Change successfully fulfilled by sagemaker."
    details = f"Instances ended with requests in them: {ended_busy}" if ended_busy else None
    return replace(activity, status="Successful", message=message, details=details, ended_at=now)


def overridden(activity: Activity, desired: int, now: float) -> Activity:
    message = f"{_successfully_set(activity)}. Found it was later changed to {desired}."
    return replace(activity, status="Overridden", message=message, ended_at=now)


def failed(activity: Activity, reason: str, now: float) -> Activity:
    message = f"Failed to set desired instance count to {activity.capacity}. Reason: {reason}"
    return replace(activity, status="Failed", message=message, ended_at=now)


def refusal(error: AwsError) -> str:
    """Return a reason as AWS's SDK for Java words a service's error."""
    return (
        f"{error.message} (Service: AmazonSageMaker; Status Code: {error.status}; Error Code: {error.code}; "
        f"Request ID: {uuid.uuid4()})"
    )


def not_scaled(resource_id: str, reason: NotScaled, now: float) -> Activity:
    """Return the activity of a trigger that changed nothing."""
    member = _CAPACITY_MEMBERS.get(reason.code)
    wire: dict[str, Any] = {"Code": reason.code} | ({member: reason.capacity} if member else {})
    return Activity(
        id=str(uuid.uuid4()),
        resource_id=resource_id,
        description="Attempting to scale due to alarm triggered",
        cause=alarm_cause(reason.trigger),
        started_at=now,
        ended_at=now,
        status="Successful" if reason.code == "AlreadyAtDesiredCapacity" else "Failed",
        not_scaled_reasons=(wire,),
    )


def change_of_bounds(action: ScheduledAction, now: float, failure: str | None = None) -> Activity:
    """Return the activity of a scheduled action that has set the bounds, or couldn't."""
    bounds = {"min": action.min_capacity, "max": action.max_capacity}
    change = " and ".join(f"{name} capacity to {value}" for name, value in bounds.items() if value is not None)
    return Activity(
        id=str(uuid.uuid4()),
        resource_id=action.resource_id,
        description=f"Setting {change}",
        cause=schedule_cause(action),
        started_at=now,
        ended_at=now,
        status="Failed" if failure else "Successful",
        message=f"Failed to set {change}. Reason: {failure}" if failure else f"Successfully set {change}",
    )


def _successfully_set(activity: Activity) -> str:
    return f"Successfully set desired instance count to {activity.capacity}"
