"""Scaling policies: put with their alarms, described and deleted."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

from endpoint.autoscaling.descriptions import CONFIGURATION, describe_alarms, describe_policy
from endpoint.autoscaling.pagination import page
from endpoint.autoscaling.policy_rules import (
    UNPUBLISHED_METRICS,
    Configuration,
    check_metric_is_free,
    merge_step,
    merge_tracking,
)
from endpoint.autoscaling.records import PolicyType, ScalableTarget, ScalingPolicy
from endpoint.autoscaling.resources import DIMENSION, LOCAL, NAMESPACE, Arns, check_filter, invalid, no_target
from endpoint.autoscaling.store import Store
from endpoint.autoscaling.tracking_alarms import AlarmChanges, Alarms, check_alarms, new_alarms
from endpoint.aws.errors import AwsError

logger = logging.getLogger(__name__)

MAX_POLICIES = 50
"""Maximum number of policies of a target."""
MAX_PAGE = 10

Parameters = dict[str, Any]
Result = dict[str, Any]


class Policies:
    """The operations on policies. They raise AwsError; those that change something come one at a time."""

    def __init__(
        self, store: Store, arns: Arns, alarms: Alarms, alarm_changes: AlarmChanges, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._arns = arns
        self._alarms = alarms
        self._alarm_changes = alarm_changes
        self._clock = clock

    async def put(self, parameters: Parameters) -> Result:
        """Do as PutScalingPolicy. New alarms take the place of a target-tracking policy's old ones."""
        resource_id, name = parameters["ResourceId"], parameters["PolicyName"]
        if (target := await self._store.target(resource_id)) is None:
            raise no_target(parameters, "registered")
        policies = await self._store.policies(resource_id)
        old = next((policy for policy in policies if policy.name == name), None)
        others = [policy for policy in policies if policy.name != name]
        type_, given = _check_type(parameters, old)
        if old is not None and given is None:
            return self._answer(old)
        if old is None and len(others) >= MAX_POLICIES:
            raise AwsError(
                "LimitExceededException", f"A scalable target can have at most {MAX_POLICIES} scaling policies"
            )
        if given is None:
            raise invalid(f"{type_} policy configuration must be specified")
        kept = old.configuration if old else None
        if type_ == "StepScaling":
            configuration = merge_step(kept, given)
        else:
            configuration = merge_tracking(kept, given)
            check_metric_is_free(configuration, (other.configuration for other in others if other.type == type_))
        policy = old or self._new_policy(target, name, type_)
        alarms = new_alarms(resource_id, policy.action_arn, configuration) if type_ == "TargetTrackingScaling" else []
        check_alarms(alarms, self._arns.settings.region)
        _warn_of_unpublished(policy, configuration)
        policy = ScalingPolicy(
            resource_id=resource_id,
            name=name,
            arn=policy.arn,
            created_at=policy.created_at,
            type=type_,
            configuration=configuration,
            action_arn=policy.action_arn,
            alarms=tuple(alarm["AlarmName"] for alarm in alarms),
        )
        await self._store.put_policy(policy, alarms)
        await self._alarm_changes.make()
        return self._answer(policy)

    async def delete(self, parameters: Parameters) -> Result:
        """Do as DeleteScalingPolicy. A step policy's alarms are the user's, and stay."""
        resource_id, name = parameters["ResourceId"], parameters["PolicyName"]
        if await self._store.target(resource_id) is None:
            raise no_target(parameters, "found")
        if await self._store.policy(resource_id, name) is None:
            raise AwsError(
                "ObjectNotFoundException",
                f"No scaling policy found for service namespace: {NAMESPACE}, resource ID: {resource_id}, "
                f"scalable dimension: {DIMENSION}, policy name: {name}",
            )
        await self._store.delete_policy(resource_id, name)
        await self._alarm_changes.make()
        return {}

    async def describe(self, parameters: Parameters) -> Result:
        """Do as DescribeScalingPolicies."""
        check_filter(parameters)
        names = parameters.get("PolicyNames", [])
        policies = await self._store.policies(parameters.get("ResourceId"))
        wanted = [policy for policy in policies if not names or policy.name in names]
        shown = page(wanted, lambda policy: [policy.resource_id, policy.name], parameters, MAX_PAGE)
        described = [describe_policy(policy, self._alarm_arns(policy)) for policy in shown.rows]
        return {"ScalingPolicies": described, "NextToken": shown.next_token}

    def _new_policy(self, target: ScalableTarget, name: str, type_: PolicyType) -> ScalingPolicy:
        arn = self._arns.policy(target.arn, target.resource_id, name)
        return ScalingPolicy(
            resource_id=target.resource_id,
            name=name,
            arn=arn,
            created_at=self._clock(),
            type=type_,
            configuration={},
            action_arn=arn if type_ == "StepScaling" else f"{arn}:createdBy/{uuid.uuid4()}",
        )

    def _answer(self, policy: ScalingPolicy) -> Result:
        return {"PolicyARN": policy.arn, "Alarms": describe_alarms(self._alarm_arns(policy))}

    def _alarm_arns(self, policy: ScalingPolicy) -> dict[str, str]:
        return {name: self._alarms.arn(name) for name in policy.alarms}


def _check_type(parameters: Parameters, old: ScalingPolicy | None) -> tuple[PolicyType, Configuration | None]:
    """Return the type of the policy that is put, and its configuration if one is given. Raises AwsError."""
    type_: Any = parameters.get("PolicyType", old.type if old else None)
    if type_ == "PredictiveScaling" or "PredictiveScalingPolicyConfiguration" in parameters:
        raise invalid(f"PolicyType PredictiveScaling {LOCAL}.")
    if type_ is None:
        raise invalid("Policy type must be specified")
    if old is not None and type_ != old.type:
        raise invalid("You cannot change a StepScaling policy to a non StepScaling policy, or vice versa.")
    others = [name for kind, name in CONFIGURATION.items() if kind != type_ and name in parameters]
    if others:
        raise invalid(
            "You must only provide a single scaling policy configuration, which must match the scaling policy type "
            "specified."
        )
    return type_, parameters.get(CONFIGURATION[type_])


def _warn_of_unpublished(policy: ScalingPolicy, configuration: Configuration) -> None:
    metric = configuration.get("PredefinedMetricSpecification", {}).get("PredefinedMetricType")
    if metric in UNPUBLISHED_METRICS:
        logger.warning(
            "policy %s of %s tracks %s, which SageMaker doesn't publish for asynchronous endpoints: it never scales",
            policy.name,
            policy.resource_id,
            metric,
        )
