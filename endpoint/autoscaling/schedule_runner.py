"""Runs scheduled actions when they are due: the bounds become the action's, then the capacity is brought within.

Of the occurrences that were missed while no gateway ran, the latest one of each action runs once, in the order of
their times. An action that is suspended is skipped. Left open by AWS, and decided here: while the endpoint is being
made or updated, only the bounds are set, and the capacity follows when it is InService.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from endpoint.autoscaling import activities
from endpoint.autoscaling.calendar import Calendar
from endpoint.autoscaling.records import Activity, ScalableTarget, ScheduledAction
from endpoint.autoscaling.schedules import next_run
from endpoint.autoscaling.store import Store
from endpoint.autoscaling.variants import Variants

_MIN_LOOK_BACK_S = 60.0
_CROSSED = "Maximum capacity cannot be less than minimum capacity"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A run as it is to be written down; of a skipped one, nothing is."""

    sets_bounds: bool = False
    needs_check: bool = False
    """Whether the capacity can't be brought within the bounds at once."""
    activities: Sequence[Activity] = ()


class ScheduleRunner:
    """Runs the actions of all targets. Its caller lets nothing else change activities meanwhile."""

    def __init__(self, store: Store, variants: Variants, load_calendar: Callable[[], Awaitable[Calendar]]) -> None:
        self._store = store
        self._variants = variants
        self._load_calendar = load_calendar

    async def run_due(self, now: float) -> float | None:
        """Run what is due. Return the wall-clock time at which an action is due next; None: never."""
        calendar = await self._load_calendar()
        time = calendar.time_at(now)
        due = [(last_run(action, time), action) for action in await self._store.actions() if _is_due(action, time)]
        for occurrence, action in sorted(due, key=lambda pair: pair[0]):
            await self._run(action, occurrence, time, now)
        coming = [action.next_run_at for action in await self._store.actions() if action.next_run_at is not None]
        return calendar.wall_time_of(min(coming)) if coming else None

    async def _run(self, action: ScheduledAction, occurrence: float, time: float, now: float) -> None:
        target = await self._store.target(action.resource_id)
        if target is None:
            return  # it was deregistered, and its actions with it
        run = _Run() if target.is_scheduled_suspended else await self._prepare(_bounded(target, action), action, now)
        await self._store.finish_run(
            action,
            ran_at=occurrence,
            next_run_at=next_run(action.schedule, action.timezone, occurrence, action.end_at, time),
            sets_bounds=run.sets_bounds,
            needs_check=run.needs_check,
            activities=run.activities,
        )

    async def _prepare(self, bounded: ScalableTarget, action: ScheduledAction, now: float) -> _Run:
        """Return what is to be written down of a run that gives the target the bounds of `bounded`."""
        resource_id = action.resource_id
        variant = await self._variants.describe(resource_id)
        if bounded.min_capacity > bounded.max_capacity:
            failure = _CROSSED
        elif variant is None:
            failure = f"Resource Id [{resource_id}] is not scalable. Reason: The variant does not exist."
        elif not variant.can_become_scalable:
            failure = f"Resource Id [{resource_id}] is not scalable. Reason: The endpoint is {variant.status}."
        else:
            is_busy = any(each.resource_id == resource_id for each in await self._store.open_activities())
            needs_check = is_busy or not variant.is_scalable
            told = [activities.change_of_bounds(action, now)]
            capacity = min(max(variant.desired, bounded.min_capacity), bounded.max_capacity)
            if capacity != variant.desired and not needs_check:
                cause = activities.schedule_cause(action)
                told.append(activities.change_of_capacity(resource_id, capacity, cause, now))
            return _Run(sets_bounds=True, needs_check=needs_check, activities=told)
        return _Run(activities=[activities.change_of_bounds(action, now, failure)])


def last_run(action: ScheduledAction, until: float) -> float:
    """Return the latest time until `until` at which an action is due, which it must be once at least.

    The steps back get longer, so that the time doesn't grow with the number of missed runs.
    """
    first = action.next_run_at
    if first is None:
        raise ValueError(f"{action.name} is never due")
    latest, look_back_s = first, _MIN_LOOK_BACK_S
    while look_back_s < until - first:
        found = next_run(action.schedule, action.timezone, first, action.end_at, until - look_back_s)
        if found is not None and found <= until:
            latest = found
            break
        look_back_s *= 2
    while (later := next_run(action.schedule, action.timezone, first, action.end_at, latest)) and later <= until:
        latest = later
    return latest


def _is_due(action: ScheduledAction, time: float) -> bool:
    return action.next_run_at is not None and action.next_run_at <= time


def _bounded(target: ScalableTarget, action: ScheduledAction) -> ScalableTarget:
    """Return the target with the bounds that the action gives."""
    low, high = action.min_capacity, action.max_capacity
    return replace(
        target,
        min_capacity=target.min_capacity if low is None else low,
        max_capacity=target.max_capacity if high is None else high,
    )
