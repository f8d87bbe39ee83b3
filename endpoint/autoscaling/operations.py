"""Application Auto Scaling's operations over parsed parameters: targets, activities and tags here, the rest beside it.

Left open by AWS, and decided here: the words about an endpoint or a variant that isn't there, as those about ECS's
services; real-time variants may be registered with a minimum of 0, and SageMaker refuses what comes of it.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from endpoint.autoscaling.descriptions import describe_activity, describe_target
from endpoint.autoscaling.pagination import last_key, next_token, page, page_size
from endpoint.autoscaling.policies import Policies
from endpoint.autoscaling.records import ScalableTarget
from endpoint.autoscaling.resources import (
    Arns,
    check_filter,
    check_resource,
    check_service,
    invalid,
    no_target,
    resource_id_of,
    variant_of,
)
from endpoint.autoscaling.scheduled_actions import ScheduledActions
from endpoint.autoscaling.store import Store
from endpoint.autoscaling.tracking_alarms import AlarmChanges, Alarms
from endpoint.aws.errors import AwsError, not_implemented
from endpoint.settings import Settings

_CROSSED = "Maximum capacity cannot be less than minimum capacity"

MAX_TAGS = 50
MAX_PAGE = 50

_ARN = re.compile(r"arn:[^:]+:[^:]+:[^:]*:[^:]*:.+", re.DOTALL)

Parameters = dict[str, Any]
Result = dict[str, Any]


class Autoscaling:
    """The operations, by AWS's names in `call`. They raise AwsError."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        alarms: Alarms,
        exists: Callable[[str, str], Awaitable[bool]],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Call `wake` when targets or scheduled actions have changed.

        `exists` tells whether an endpoint has a variant. `clock` is the wall clock, in seconds since the epoch.
        """
        self._store = store
        self._exists = exists
        self._wake = wake
        self._clock = clock
        self._arns = Arns(settings)
        self._alarm_changes = AlarmChanges(store, alarms)
        self._lock = asyncio.Lock()  # between looking at a record and changing it
        policies = Policies(store, self._arns, alarms, self._alarm_changes, clock)
        actions = ScheduledActions(store, self._arns, settings.time_scale, clock)
        self._reads: dict[str, Callable[[Parameters], Awaitable[Result]]] = {
            "DescribeScalableTargets": self._describe_targets,
            "DescribeScalingPolicies": policies.describe,
            "DescribeScheduledActions": actions.describe,
            "DescribeScalingActivities": self._describe_activities,
            "ListTagsForResource": self._list_tags,
        }
        self._writes: dict[str, Callable[[Parameters], Awaitable[Result]]] = {
            "RegisterScalableTarget": self._register,
            "DeregisterScalableTarget": self._deregister,
            "PutScalingPolicy": policies.put,
            "DeleteScalingPolicy": policies.delete,
            "PutScheduledAction": actions.put,
            "DeleteScheduledAction": actions.delete,
            "TagResource": self._tag,
            "UntagResource": self._untag,
        }

    async def call(self, operation: str, parameters: Parameters) -> Result:
        """Call an operation by its name. Raises AwsError."""
        if operation not in self._reads and operation not in self._writes:
            raise not_implemented(operation)
        if "ServiceNamespace" in parameters:
            check_service(parameters)
        if operation in self._reads:
            return await self._reads[operation](parameters)
        if "ResourceId" in parameters:
            check_resource(parameters["ResourceId"])
        async with self._lock:
            result = await self._writes[operation](parameters)
        self._wake()
        return result

    async def resume(self) -> None:
        """Finish what a killed gateway left half done: policies and their alarms belong together again."""
        await self._alarm_changes.make()

    async def is_registered(self, endpoint: str, variant: str) -> bool:
        """Tell whether a variant is a scalable target."""
        return await self._store.target(resource_id_of(endpoint, variant)) is not None

    async def deregister_endpoint(self, name: str) -> None:
        """Deregister the variants of an endpoint, as DeleteEndpoint does."""
        async with self._lock:
            for target in await self._store.targets():
                if variant_of(target.resource_id)[0] == name:
                    await self._store.delete_target(target.resource_id)
            await self._alarm_changes.make()
        self._wake()

    # Targets

    async def _register(self, parameters: Parameters) -> Result:
        resource_id = parameters["ResourceId"]
        if (role := parameters.get("RoleARN")) is not None and not _ARN.fullmatch(role):
            raise invalid(f"'{role}' is not a valid ARN")
        old = await self._store.target(resource_id)
        tags = parameters.get("Tags", {})
        if old is None:
            target = await self._new_target(resource_id, parameters)
            _check_tags(tags, target.arn)
            await self._store.add_target(target, tags)
            return {"ScalableTargetARN": target.arn}
        if tags:
            raise invalid(
                "The scalable target that you tried to tag already exists. To update tags on an existing scalable "
                "target, use the TagResource API."
            )
        least, most = parameters.get("MinCapacity"), parameters.get("MaxCapacity")
        _check_bounds(old.min_capacity if least is None else least, old.max_capacity if most is None else most)
        bounds = {"min_capacity": least, "max_capacity": most}
        changes = {name: value for name, value in bounds.items() if value is not None} | _suspended(parameters)
        try:
            await self._store.change_target(resource_id, **changes)
        except sqlite3.IntegrityError:  # a scheduled action has set other bounds in between
            raise invalid(_CROSSED) from None
        return {"ScalableTargetARN": old.arn}

    async def _new_target(self, resource_id: str, parameters: Parameters) -> ScalableTarget:
        for name, words in (("MinCapacity", "Minimum capacity"), ("MaxCapacity", "Maximum capacity")):
            if name not in parameters:
                raise invalid(f"{words} must be specified")
        least, most = parameters["MinCapacity"], parameters["MaxCapacity"]
        _check_bounds(least, most)
        if not await self._exists(*variant_of(resource_id)):
            raise invalid(f"SageMaker endpoint variant doesn't exist: {resource_id}")
        return ScalableTarget(
            resource_id=resource_id,
            arn=self._arns.target(str(uuid.uuid4())),
            created_at=self._clock(),
            min_capacity=least,
            max_capacity=most,
            role_arn=self._arns.role(),
            **_suspended(parameters),
        )

    async def _deregister(self, parameters: Parameters) -> Result:
        if not await self._store.delete_target(parameters["ResourceId"]):
            raise no_target(parameters, "found")
        await self._alarm_changes.make()
        return {}

    async def _describe_targets(self, parameters: Parameters) -> Result:
        wanted = parameters.get("ResourceIds", [])
        if not wanted and "ScalableDimension" in parameters:
            raise invalid("ResourceIds must be specified when ScalableDimension is specified")
        for resource_id in wanted:
            check_resource(resource_id)
        targets = [each for each in await self._store.targets() if not wanted or each.resource_id in wanted]
        shown = page(targets, lambda target: [target.resource_id], parameters, MAX_PAGE)
        return {"ScalableTargets": list(map(describe_target, shown.rows)), "NextToken": shown.next_token}

    # Activities

    async def _describe_activities(self, parameters: Parameters) -> Result:
        check_filter(parameters)
        size, last = page_size(parameters, MAX_PAGE), last_key(parameters)
        activities = await self._store.activities(
            parameters.get("ResourceId"),
            has_not_scaled=parameters.get("IncludeNotScaledActivities", False),
            before=last[0] if last else None,
            limit=size + 1,
        )
        shown = activities[:size]
        token = next_token(parameters, [shown[-1].id] if 0 < size < len(activities) else None)
        return {"ScalingActivities": list(map(describe_activity, shown)), "NextToken": token}

    # Tags

    async def _list_tags(self, parameters: Parameters) -> Result:
        target = await self._tagged_target(parameters)
        return {"Tags": await self._store.tags(target.arn)}

    async def _tag(self, parameters: Parameters) -> Result:
        tags = parameters["Tags"]
        if not tags:
            raise invalid("Tags cannot be empty")
        target = await self._tagged_target(parameters)
        _check_tags(tags, target.arn)
        if len(await self._store.tags(target.arn) | tags) > MAX_TAGS:
            raise _too_many_tags(target.arn)
        await self._store.add_tags(target.arn, tags)
        return {}

    async def _untag(self, parameters: Parameters) -> Result:
        if not parameters["TagKeys"]:
            raise invalid("TagKeys cannot be null or empty")
        target = await self._tagged_target(parameters)
        await self._store.remove_tags(target.arn, parameters["TagKeys"])
        return {}

    async def _tagged_target(self, parameters: Parameters) -> ScalableTarget:
        arn = parameters["ResourceARN"]
        if (target := await self._store.target_with_arn(arn)) is None:
            raise AwsError("ResourceNotFoundException", "Scalable Target not found", ResourceName=arn)
        return target


def _check_bounds(least: int, most: int) -> None:
    if least < 0:
        raise invalid("Minimum capacity cannot be less than 0")
    if most < least:
        raise invalid(_CROSSED)


def _suspended(parameters: Parameters) -> dict[str, Any]:
    """Return what SuspendedState changes; what it doesn't name stays."""
    state = parameters.get("SuspendedState", {})
    names = {
        "DynamicScalingInSuspended": "is_in_suspended",
        "DynamicScalingOutSuspended": "is_out_suspended",
        "ScheduledScalingSuspended": "is_scheduled_suspended",
    }
    return {field: state[name] for name, field in names.items() if name in state}


def _check_tags(tags: dict[str, str], arn: str) -> None:
    if any(key.lower().startswith("aws:") for key in tags):
        raise invalid("Caller is an end user and not allowed to mutate system tags")
    if len(tags) > MAX_TAGS:
        raise _too_many_tags(arn)


def _too_many_tags(arn: str) -> AwsError:
    message = f"A scalable target can have at most {MAX_TAGS} tags"
    return AwsError("TooManyTagsException", message, ResourceName=arn)
