"""Decides capacities: pure functions over policies, alarms, capacity, cooldowns and the time.

The endpoint and the simulator (`scripts/simulate`) call the same functions. Times are seconds of one clock; cooldowns
are seconds of that clock, too (the endpoint has divided them by its time scale).

The rules are those of AWS's guide to Application Auto Scaling. Where it is silent: a target-tracking policy takes the
mean of its alarm's recent values as the metric, and leaves zero by one instance; a metric per instance counts for the
instances that run; a policy that is in its scale-in cooldown doesn't agree to scale in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from statistics import fmean
from typing import Literal

AdjustmentType = Literal["ChangeInCapacity", "PercentChangeInCapacity", "ExactCapacity"]
Aggregation = Literal["Average", "Minimum", "Maximum"]
NotScaledCode = Literal[
    "AutoScalingAnticipatedFlapping",
    "TargetServicePutResourceAsUnscalable",
    "AlreadyAtMaxCapacity",
    "AlreadyAtMinCapacity",
    "AlreadyAtDesiredCapacity",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingPolicy:
    """A target-tracking policy of one metric."""

    name: str
    target: float
    scale_out_cooldown_s: float = 300.0
    scale_in_cooldown_s: float = 300.0
    can_scale_in: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Interval of value minus threshold, in which capacity changes by `adjustment`. None is no bound."""

    lower: float | None
    upper: float | None
    adjustment: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPolicy:
    name: str
    adjustment_type: AdjustmentType
    steps: tuple[Step, ...]
    cooldown_s: float = 300.0
    min_magnitude: int = 1
    """MinAdjustmentMagnitude: the least change by a percentage."""
    aggregation: Aggregation = "Average"


Policy = TrackingPolicy | StepPolicy

LOW_RATIO = 0.9
"""Part of a target-tracking policy's target below which it scales in."""
_AGGREGATE: dict[Aggregation, Callable[[Sequence[float]], float]] = {"Average": fmean, "Minimum": min, "Maximum": max}
_MAX_CAPACITY = 2.0**53
_DIGITS = 9
"""Decimal places that count of a number of instances: 3 * 0.1 / 0.3 is one instance, not two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """An alarm that is in ALARM and has a policy among its actions."""

    policy: Policy
    alarm: str
    values: tuple[float, ...]
    """Recent values of its metric, the oldest first, without gaps; empty: it can't scale."""
    threshold: float
    is_above: bool
    """Whether the alarm's comparison is a "greater than": a target-tracking policy scales out by it, else in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A scalable target as it is now."""

    min_capacity: int
    max_capacity: int
    desired: int
    """Instances asked for last."""
    running: int
    """Instances that serve. A metric per instance is one of these."""
    is_scalable: bool = True
    """False while the endpoint isn't InService: nothing can be asked for."""
    is_out_suspended: bool = False
    is_in_suspended: bool = False
    policies: tuple[Policy, ...] = ()
    """All policies of the target, whose agreement scaling in may need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooldown:
    """The past of a policy, as far as it limits what it may do now. Kept as JSON between decisions."""

    asked: int = 0
    """Change that it has asked for and that isn't complete: more than 0 is a scale-out, less a scale-in."""
    added: int = 0
    """Instances that its scale-out window has added already, without `asked`."""
    out_until: float | None = None
    """Time at which the window of its last scale-out ends."""
    in_until: float | None = None
    """Time until which it may not scale in again."""

    def credit(self, now: float) -> int:
        """Return the instances that count as part of its next scale-out."""
        return self.added + max(self.asked, 0) if self._is_scaling_out(now) else 0

    def blocks_scale_in(self, now: float) -> bool:
        return self.asked < 0 or (self.in_until is not None and now < self.in_until)

    def at(self, now: float) -> Cooldown:
        """Return it without what is over."""
        is_out = self._is_scaling_out(now)
        return replace(
            self,
            added=self.added if is_out else 0,
            out_until=self.out_until if is_out else None,
            in_until=self.in_until if self.in_until is not None and now < self.in_until else None,
        )

    def limited(self, policy: Policy, now: float) -> Cooldown:
        """Return it with windows that end no later than if they began now.

        They would end later after the clock was set back, and under a time scale that is greater than it was.
        """
        out_s, in_s = _cooldowns_s(policy)
        return replace(
            self,
            out_until=None if self.out_until is None else min(self.out_until, now + out_s),
            in_until=None if self.in_until is None else min(self.in_until, now + in_s),
        )

    def _is_scaling_out(self, now: float) -> bool:
        return self.asked > 0 or (self.out_until is not None and now < self.out_until)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotScaled:
    """A NotScaledReason of a trigger. `capacity` is the bound or the capacity that the code names."""

    trigger: Trigger
    code: NotScaledCode
    capacity: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The outcome of all triggers of one evaluation."""

    capacity: int | None = None
    """Capacity to ask for, within the bounds; None: none."""
    trigger: Trigger | None = None
    """The trigger that decided it."""
    not_scaled: tuple[NotScaled, ...] = ()
    cooldowns: Mapping[str, Cooldown] = field(default_factory=dict)
    """Cooldowns by the policies' names, as they are once `capacity` has been asked for."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """The capacity, within the bounds and other than the present one, that a trigger asks for."""

    trigger: Trigger
    capacity: int


def decide(target: Target, triggers: Sequence[Trigger], cooldowns: Mapping[str, Cooldown], now: float) -> Decision:
    """Return what follows from all triggers of one evaluation: the largest capacity that one of them asks for.

    A target-tracking policy scales in only if all that can scale in are among the triggers and agree.
    """
    cooldowns = _live(cooldowns, now)
    answers = [_answer(target, trigger, cooldowns.get(trigger.policy.name, Cooldown()), now) for trigger in triggers]
    not_scaled = [answer for answer in answers if isinstance(answer, NotScaled)]
    wishes = _agreed(target, [answer for answer in answers if isinstance(answer, _Wish)])
    if wishes and not target.is_scalable:
        not_scaled += [NotScaled(trigger=w.trigger, code="TargetServicePutResourceAsUnscalable") for w in wishes]
        wishes = []
    if not wishes:
        return Decision(not_scaled=tuple(not_scaled), cooldowns=cooldowns)
    chosen = max(wishes, key=lambda wish: wish.capacity)
    return Decision(
        capacity=chosen.capacity,
        trigger=chosen.trigger,
        not_scaled=tuple(not_scaled),
        cooldowns=_asked(cooldowns, chosen.trigger.policy.name, chosen.capacity - target.desired),
    )


def fulfilled(policy: Policy, cooldowns: Mapping[str, Cooldown], now: float) -> Mapping[str, Cooldown]:
    """Return the cooldowns after the change that `policy` asked for is complete: its window begins."""
    cooldown = cooldowns.get(policy.name, Cooldown())
    out_s, in_s = _cooldowns_s(policy)
    if cooldown.asked > 0:
        added = cooldown.added + cooldown.asked
        cooldown = replace(cooldown, asked=0, added=added, out_until=now + out_s)
    elif cooldown.asked < 0:
        cooldown = replace(cooldown, asked=0, in_until=now + in_s)
    return _live({**cooldowns, policy.name: cooldown}, now)


def abandoned(policy_name: str, cooldowns: Mapping[str, Cooldown], now: float) -> Mapping[str, Cooldown]:
    """Return the cooldowns after the change that a policy asked for has failed, or was overridden: no window begins."""
    cooldown = cooldowns.get(policy_name, Cooldown())
    return _live({**cooldowns, policy_name: replace(cooldown, asked=0)}, now)


def within_bounds(target: Target) -> int:
    """Return the capacity within the target's bounds that is next to its present one."""
    return min(max(target.desired, target.min_capacity), target.max_capacity)


def _answer(target: Target, trigger: Trigger, cooldown: Cooldown, now: float) -> _Wish | NotScaled | None:
    """Return what one trigger alone leads to. None is nothing, not even a reason."""
    if not trigger.values:
        return None
    if isinstance(trigger.policy, TrackingPolicy):
        proposed = _tracked(target, trigger.policy, trigger)
    else:
        proposed = _stepped(target.desired, trigger.policy, trigger)
    if proposed is None:
        return None
    is_out = proposed > target.desired
    if is_out and not _is_exact(trigger.policy):
        proposed = max(proposed - min(cooldown.credit(now), target.desired), target.desired)
    is_low = isinstance(trigger.policy, TrackingPolicy) and not trigger.is_above
    is_in = proposed < target.desired or is_low
    if (is_out and target.is_out_suspended) or (is_in and target.is_in_suspended):
        return None
    if is_in and target.desired <= target.min_capacity:
        return NotScaled(trigger=trigger, code="AlreadyAtMinCapacity", capacity=target.min_capacity)
    if is_out and target.desired >= target.max_capacity:
        return NotScaled(trigger=trigger, code="AlreadyAtMaxCapacity", capacity=target.max_capacity)
    if is_in and cooldown.blocks_scale_in(now):
        return None
    if proposed == target.desired:
        return NotScaled(trigger=trigger, code="AlreadyAtDesiredCapacity", capacity=target.desired)
    return _Wish(trigger, min(max(proposed, target.min_capacity), target.max_capacity))


def _tracked(target: Target, policy: TrackingPolicy, trigger: Trigger) -> int | None:
    """Return the capacity at which the metric would be at its target: never less when above it, never more below."""
    metric = fmean(trigger.values)
    if trigger.is_above and metric > policy.target:
        if target.desired == 0:
            return 1
        return max(_proportional(target, metric / policy.target), target.desired)
    if not trigger.is_above and metric < LOW_RATIO * policy.target and policy.can_scale_in:
        return min(_proportional(target, metric / policy.target), target.desired)
    return None


def _proportional(target: Target, ratio: float) -> int:
    # A metric per instance is the whole where no instance serves.
    running = max(target.running, 1)
    return ceil(round(min(max(running * ratio, -_MAX_CAPACITY), _MAX_CAPACITY), _DIGITS))


def _stepped(capacity: int, policy: StepPolicy, trigger: Trigger) -> int | None:
    """Return the capacity after the adjustment of the step in which the metric lies; None: there is no such step."""
    difference = _AGGREGATE[policy.aggregation](trigger.values) - trigger.threshold
    step = next((step for step in policy.steps if _contains(step, difference, trigger.is_above)), None)
    if step is None:
        return None
    match policy.adjustment_type:
        case "ExactCapacity":
            return step.adjustment
        case "ChangeInCapacity":
            return capacity + step.adjustment
        case "PercentChangeInCapacity":
            return capacity + _percentage(capacity, step.adjustment, policy.min_magnitude)


def _contains(step: Step, difference: float, is_above: bool) -> bool:
    """Return whether the step's interval has `difference`: the bound nearer to the threshold belongs to it."""
    lower = float("-inf") if step.lower is None else step.lower
    upper = float("inf") if step.upper is None else step.upper
    return lower <= difference < upper if is_above else lower < difference <= upper


def _percentage(capacity: int, percent: int, min_magnitude: int) -> int:
    """Return the change: rounded towards zero, but at least `min_magnitude` unless `percent` is 0."""
    if percent == 0:
        return 0
    magnitude = max(capacity * abs(percent) // 100, min_magnitude, 1)
    return magnitude if percent > 0 else -magnitude


def _cooldowns_s(policy: Policy) -> tuple[float, float]:
    """Return the seconds of a policy's scale-out window and of its scale-in cooldown."""
    if isinstance(policy, TrackingPolicy):
        return policy.scale_out_cooldown_s, policy.scale_in_cooldown_s
    return policy.cooldown_s, policy.cooldown_s


def _is_exact(policy: Policy) -> bool:
    return isinstance(policy, StepPolicy) and policy.adjustment_type == "ExactCapacity"


def _agreed(target: Target, wishes: Sequence[_Wish]) -> list[_Wish]:
    """Return the wishes without scale-ins of target-tracking policies on which not all of them agree."""
    scaling_in = {
        wish.trigger.policy.name
        for wish in wishes
        if wish.capacity < target.desired and isinstance(wish.trigger.policy, TrackingPolicy)
    }
    needed = {each.name for each in target.policies if isinstance(each, TrackingPolicy) and each.can_scale_in}
    if needed <= scaling_in:
        return list(wishes)
    return [
        wish for wish in wishes if wish.capacity > target.desired or not isinstance(wish.trigger.policy, TrackingPolicy)
    ]


def _asked(cooldowns: Mapping[str, Cooldown], name: str, change: int) -> Mapping[str, Cooldown]:
    """Return the cooldowns after a policy has asked for a change.

    A scale-out ends all scale-in cooldowns. Instances that a scale-in takes away are no longer what windows have added.
    """
    if change > 0:
        changed = {other: replace(cooldown, in_until=None) for other, cooldown in cooldowns.items()}
    else:
        changed = {
            other: replace(cooldown, added=max(cooldown.added + change, 0)) for other, cooldown in cooldowns.items()
        }
    own = changed.get(name, Cooldown())
    # A request that is under way is asked for no more: the new one takes its place.
    asked = change + max(own.asked, 0) if change > 0 else change
    return {**changed, name: replace(own, asked=asked)}


def _live(cooldowns: Mapping[str, Cooldown], now: float) -> dict[str, Cooldown]:
    """Return the cooldowns that still matter."""
    current = {name: cooldown.at(now) for name, cooldown in cooldowns.items()}
    return {name: cooldown for name, cooldown in current.items() if cooldown != Cooldown()}
