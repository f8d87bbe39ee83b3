"""Decides capacities: pure functions over policies, alarms, capacity, cooldowns and the time.

The endpoint and the simulator (`scripts/simulate`) call the same functions. Times are seconds of one clock; cooldowns
are seconds of that clock, too (the endpoint has divided them by its time scale).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """Where value minus threshold lies in the interval, capacity changes by `adjustment`. None is no bound."""

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
    """Instances that serve."""
    is_scalable: bool = True
    """False while the endpoint isn't InService: nothing can be asked for."""
    is_out_suspended: bool = False
    is_in_suspended: bool = False
    policies: tuple[Policy, ...] = ()
    """All policies of the target, whose agreement scaling in may need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooldown:
    """What a policy's own past allows it now. Kept as JSON between decisions."""

    added: int = 0
    """Instances that its scale-out window has added already."""
    out_until: float | None = None
    """Time at which the window of its last scale-out ends; infinite while that is under way."""
    in_until: float | None = None
    """Time until which it may not scale in again; infinite while its last scale-in is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotScaled:
    """Why a trigger changed nothing: a NotScaledReason. `capacity` is the bound or the capacity that the code names."""

    trigger: Trigger
    code: NotScaledCode
    capacity: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the triggers of one evaluation lead to."""

    capacity: int | None = None
    """Capacity to ask for; None: none."""
    trigger: Trigger | None = None
    """The trigger that decided it."""
    not_scaled: tuple[NotScaled, ...] = ()
    cooldowns: Mapping[str, Cooldown] = field(default_factory=dict)
    """Cooldowns by the policies' names, as they are once `capacity` has been asked for."""


def decide(target: Target, triggers: Sequence[Trigger], cooldowns: Mapping[str, Cooldown], now: float) -> Decision:
    """Return what follows from all triggers of one evaluation: the largest capacity that one of them asks for.

    A target-tracking policy scales in only if all that can scale in are among the triggers and agree.
    """
    raise NotImplementedError


def fulfilled(policy: Policy, cooldowns: Mapping[str, Cooldown], now: float) -> Mapping[str, Cooldown]:
    """Return the cooldowns after the change that `policy` asked for is complete: its windows begin."""
    raise NotImplementedError
