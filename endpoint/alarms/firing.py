"""Firings: how alarms tell Application Auto Scaling that they are in ALARM, and what their metrics were."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """One action of an alarm that is in ALARM: invoked when it gets there, and again every minute while it stays."""

    action: str
    """ARN among AlarmActions: of a scaling policy, perhaps with `:createdBy/ID` behind it."""
    alarm: str
    """Name of the alarm."""
    values: tuple[float, ...]
    """Statistics of the periods that were evaluated, the oldest first, without gaps. Empty: nothing can scale by it."""
    threshold: float
    is_above: bool
    """Whether ALARM means that the metric is too high."""
    at: float
    """Time of the evaluation, in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FiringResult:
    """Outcome of a firing, for the alarm's history."""

    error: str | None = None
    """Why the action could not be executed; None: it was, whether or not it changed anything."""


Act = Callable[[Sequence[Firing]], Awaitable[Sequence[FiringResult]]]
"""Function that gets all firings of one evaluation at once, and returns a result for each, in their order."""
