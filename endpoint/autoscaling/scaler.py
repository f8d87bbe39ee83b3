"""Scales: from firings of alarms, new bounds and schedules to capacities that SageMaker is asked for, and their ends.

What is to be asked for is written down first, as a `Pending` activity, together with the cooldowns that it leads to. A
gateway that is killed anywhere finds it, and asks unless SageMaker has been asked already. An activity is followed to
its end, at which cooldowns begin: every change of an endpoint's row wakes the scaler.

Left open by AWS, and decided here: an activity that can't be asked for because the endpoint has just begun another
update waits for its end; an endpoint that goes back to fewer instances because some could not be started has `Failed`
the activity, with its FailureReason; so has one that is deleted meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from endpoint.alarms.firing import Firing, FiringResult
from endpoint.autoscaling import activities
from endpoint.autoscaling.decision_policies import decision_policy
from endpoint.autoscaling.decisions import (
    Cooldown,
    Decision,
    Policy,
    Target,
    Trigger,
    abandoned,
    decide,
    fulfilled,
    within_bounds,
)
from endpoint.autoscaling.recording import Record
from endpoint.autoscaling.records import Activity, ScalableTarget
from endpoint.autoscaling.schedule_runner import ScheduleRunner
from endpoint.autoscaling.store import Store
from endpoint.autoscaling.variants import Variant, Variants
from endpoint.aws.errors import AwsError
from endpoint.settings import Settings

_LOG = logging.getLogger(__name__)

_RETRY_INTERVAL_S = 1.0
_MAX_WAIT_S = 60.0
"""Seconds until the clock is read again: it may be set, or the machine may sleep."""
_DROP_INTERVAL_S = 3600.0
_DELETED = "The endpoint was deleted."
_DEREGISTERED = "The scalable target was deregistered."
_MAX_REPEATS_LOOKED_AT = 50


class Scaler:
    """Owns the activities and cooldowns of all targets; there is one of it per database."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        variants: Variants,
        schedules: ScheduleRunner,
        *,
        clock: Callable[[], float] = time.time,
        record: Callable[[Record], None] | None = None,
    ) -> None:
        """`record` gets each decision, with what it was made of."""
        self._settings = settings
        self._store = store
        self._variants = variants
        self._schedules = schedules
        self._clock = clock
        self._record = record or (lambda _: None)
        self._lock = asyncio.Lock()  # between looking at a target's activities and changing them
        self._woken = asyncio.Event()
        self._dropped_at = -math.inf
        self._ended_busy: dict[str, int] = {}
        """Numbers of busy instances that were ended before an activity asked, by the activity's ID."""

    def wake(self) -> None:
        """Look soon at what is under way, at bounds and at schedules: something may have changed."""
        self._woken.set()

    async def run(self) -> None:
        """Follow activities, bounds and schedules until cancelled. Never raises."""
        while True:
            self._woken.clear()
            try:
                due_at = await self.step()
                wait_s = None if due_at is None else min(max(due_at - self._clock(), 0.0), _MAX_WAIT_S)
            except Exception:
                _LOG.exception("The scalable targets could not be looked at")
                wait_s = _RETRY_INTERVAL_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), wait_s)

    async def step(self) -> float | None:
        """Do all that is due. Return the time, in seconds since the epoch, at which a schedule is due next."""
        async with self._lock:
            await self._follow_all()
            due_at = await self._schedules.run_due(self._clock())
            await self._follow_all()
            for target in await self._store.targets():
                if target.is_unchecked:
                    await self._bring_within_bounds(target)
            await self._drop_old_activities()
        return due_at

    async def act(self, firings: Sequence[Firing]) -> list[FiringResult]:
        """Decide once for each target by all firings of an evaluation. Returns a result for each firing."""
        errors: dict[int, str] = {}
        by_target: dict[str, dict[int, Firing]] = {}
        policies: dict[int, str] = {}
        async with self._lock:
            for number, firing in enumerate(firings):
                policy = await self._store.policy_of_action(firing.action)
                if policy is None:
                    errors[number] = f"No scaling policy found for {firing.action}"
                    continue
                policies[number] = policy.name
                by_target.setdefault(policy.resource_id, {})[number] = firing
            for resource_id, of_target in by_target.items():
                named = [(policies[number], firing) for number, firing in of_target.items()]
                try:
                    error = await self._act_on(resource_id, named)
                except Exception as failure:  # the other targets go on
                    _LOG.exception("The scaling policies of %s failed", resource_id)
                    error = f"{type(failure).__name__}: {failure}"
                if error is not None:
                    errors |= dict.fromkeys(of_target, error)
        return [FiringResult(error=errors.get(number)) for number in range(len(firings))]

    async def _act_on(self, resource_id: str, firings: Sequence[tuple[str, Firing]]) -> str | None:
        """Decide for a target by firings with the names of their policies. Returns why that isn't possible, if so."""
        await self._follow(resource_id)
        target, variant = await self._store.target(resource_id), await self._variants.describe(resource_id)
        if target is None or variant is None:
            return f"Resource {resource_id} does not exist"
        policies = await self._policies(resource_id)
        is_scalable = variant.is_scalable and not await self._is_busy(resource_id)
        here = _target(target, variant, policies, is_scalable=is_scalable)
        triggers = [
            Trigger(
                policy=policies[name],
                alarm=firing.alarm,
                values=firing.values,
                threshold=firing.threshold,
                is_above=firing.is_above,
            )
            for name, firing in firings
            if name in policies
        ]
        now = self._clock()
        cooldowns = {
            name: cooldown.limited(policies[name], now)
            for name, cooldown in target.cooldowns.items()
            if name in policies
        }
        decision = decide(here, triggers, cooldowns, now)
        self._record(
            Record(
                resource_id=resource_id,
                now=now,
                target=here,
                triggers=tuple(triggers),
                cooldowns=cooldowns,
                decision=decision,
            )
        )
        await self._carry_out(target, decision, now)
        return None

    async def _carry_out(self, target: ScalableTarget, decision: Decision, now: float) -> None:
        resource_id = target.resource_id
        new = [activities.not_scaled(resource_id, reason, now) for reason in decision.not_scaled]
        if new:
            new = await self._without_repeats(resource_id, new)
        if decision.capacity is not None and decision.trigger is not None:
            cause, policy = activities.alarm_cause(decision.trigger), decision.trigger.policy.name
            new.append(activities.change_of_capacity(resource_id, decision.capacity, cause, now, policy))
        if new or decision.cooldowns != target.cooldowns:
            await self._store.record(resource_id, new, decision.cooldowns)
        if decision.capacity is not None:
            await self._follow(resource_id)

    async def _without_repeats(self, resource_id: str, new: Sequence[Activity]) -> list[Activity]:
        """Return the not-scaled activities that tell something else than the last ones of their causes."""
        told: dict[str, tuple[str, ...]] = {}
        for activity in await self._store.activities(resource_id, limit=_MAX_REPEATS_LOOKED_AT):
            if not activity.not_scaled_reasons:
                break
            told.setdefault(activity.cause, _codes(activity))
        return [activity for activity in new if told.get(activity.cause) != _codes(activity)]

    async def _bring_within_bounds(self, target: ScalableTarget) -> None:
        """Ask for the nearer bound if the capacity is outside, once it can be asked for."""
        resource_id = target.resource_id
        variant = await self._variants.describe(resource_id)
        if variant is None or not variant.is_scalable or await self._is_busy(resource_id):
            return
        capacity = within_bounds(_target(target, variant, {}, is_scalable=True))
        new = []
        if capacity != variant.desired:
            cause = activities.bounds_cause(capacity, variant.desired)
            new.append(activities.change_of_capacity(resource_id, capacity, cause, self._clock()))
        await self._store.finish_check(target, new)
        await self._follow(resource_id)

    async def _is_busy(self, resource_id: str) -> bool:
        """Return whether an activity of the target is under way."""
        return any(activity.resource_id == resource_id for activity in await self._store.open_activities())

    async def _follow_all(self) -> None:
        for resource_id in {activity.resource_id for activity in await self._store.open_activities()}:
            await self._follow(resource_id)

    async def _follow(self, resource_id: str) -> None:
        """Move the target's activities on, the oldest first, as far as SageMaker lets them."""
        for activity in await self._store.open_activities():
            if activity.resource_id == resource_id and not await self._has_ended(activity):
                return

    async def _has_ended(self, activity: Activity) -> bool:
        """Move an activity on, and return whether it has ended."""
        variant = await self._variants.describe(activity.resource_id)
        if variant is None:
            await self._end(activities.failed(activity, _DELETED, self._clock()))
            return True
        if activity.status == "Pending":
            if await self._store.target(activity.resource_id) is None:
                await self._end(activities.failed(activity, _DEREGISTERED, self._clock()))
                return True
            if variant.desired != activity.capacity:
                return await self._ask(activity, variant)
            activity = activities.in_progress(activity)
            await self._store.record(activity.resource_id, [activity])
        if not variant.is_scalable:
            return False
        now = self._clock()
        if variant.desired == activity.capacity:
            before = self._ended_busy.pop(activity.id, None)
            ended_busy = 0 if before is None else self._variants.count_ended_busy(activity.resource_id) - before
            await self._end(activities.successful(activity, now, ended_busy))
        elif variant.failure_reason is not None:
            await self._end(activities.failed(activity, variant.failure_reason, now))
        else:
            await self._end(activities.overridden(activity, variant.desired, now))
        return True

    async def _ask(self, activity: Activity, variant: Variant) -> bool:
        """Ask for the capacity of a pending activity, if that is possible now. Return whether the activity has ended.

        Activities are recorded when SageMaker has answered: a gateway that is killed before finds what it asked for.
        """
        if not variant.is_scalable or activity.capacity is None:
            return False
        self._ended_busy[activity.id] = self._variants.count_ended_busy(activity.resource_id)
        try:
            await self._variants.set_desired(activity.resource_id, activity.capacity)
        except AwsError as error:
            now_variant = await self._variants.describe(activity.resource_id)
            if now_variant is not None and not now_variant.is_scalable:
                return False  # another update has just begun
            await self._end(activities.failed(activity, activities.refusal(error), self._clock()))
            return True
        activity = activities.in_progress(activity)
        await self._store.record(activity.resource_id, [activity])
        return False

    async def _end(self, activity: Activity) -> None:
        """Record an ended activity with the cooldowns that begin, or don't, at its end."""
        self._ended_busy.pop(activity.id, None)
        target = await self._store.target(activity.resource_id)
        cooldowns: Mapping[str, Cooldown] | None = None
        if target is not None and activity.policy is not None:
            policy = (await self._policies(activity.resource_id)).get(activity.policy)
            if activity.status == "Successful" and policy is not None:
                cooldowns = fulfilled(policy, target.cooldowns, self._clock())
            else:
                cooldowns = abandoned(activity.policy, target.cooldowns, self._clock())
        await self._store.record(activity.resource_id, [activity], cooldowns)
        _LOG.info("%s: %s", activity.resource_id, activity.message)

    async def _drop_old_activities(self) -> None:
        if self._clock() - self._dropped_at >= _DROP_INTERVAL_S:
            self._dropped_at = self._clock()
            await self._store.drop_old_activities(self._dropped_at)

    async def _policies(self, resource_id: str) -> dict[str, Policy]:
        rows = await self._store.policies(resource_id)
        real_s = self._settings.real_s
        return {row.name: decision_policy(row.name, row.type, row.configuration, real_s) for row in rows}


def _target(target: ScalableTarget, variant: Variant, policies: Mapping[str, Policy], *, is_scalable: bool) -> Target:
    return Target(
        min_capacity=target.min_capacity,
        max_capacity=target.max_capacity,
        desired=variant.desired,
        running=variant.running,
        is_scalable=is_scalable,
        is_out_suspended=target.is_out_suspended,
        is_in_suspended=target.is_in_suspended,
        policies=tuple(policies.values()),
    )


def _codes(activity: Activity) -> tuple[str, ...]:
    return tuple(reason["Code"] for reason in activity.not_scaled_reasons)
