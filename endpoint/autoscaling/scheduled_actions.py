"""Scheduled actions: put, described and deleted. The scaler runs them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from endpoint.autoscaling.calendar import open_calendar
from endpoint.autoscaling.descriptions import describe_action
from endpoint.autoscaling.pagination import page
from endpoint.autoscaling.records import ScheduledAction
from endpoint.autoscaling.resources import NAMESPACE, Arns, check_filter, invalid, no_target, target_id_of
from endpoint.autoscaling.schedules import ScheduleError, check_schedule, next_run
from endpoint.autoscaling.store import Store
from endpoint.aws.errors import AwsError

MAX_ACTIONS = 200
"""Maximum number of scheduled actions of a target."""
MAX_PAGE = 50
_YEAR_10000 = datetime(9999, 12, 31, tzinfo=UTC).timestamp() + 86400

Parameters = dict[str, Any]
Result = dict[str, Any]


class ScheduledActions:
    """The operations on scheduled actions. They raise AwsError; those that change something come one at a time."""

    def __init__(self, store: Store, arns: Arns, time_scale: float, clock: Callable[[], float]) -> None:
        self._store = store
        self._arns = arns
        self._time_scale = time_scale
        self._clock = clock

    async def put(self, parameters: Parameters) -> Result:
        """Do as PutScheduledAction: StartTime and EndTime that aren't given go, all else stays."""
        resource_id, name = parameters["ResourceId"], parameters["ScheduledActionName"]
        if (target := await self._store.target(resource_id)) is None:
            raise no_target(parameters, "registered")
        old = await self._store.action(resource_id, name)
        if old is None and len(await self._store.actions(resource_id)) >= MAX_ACTIONS:
            raise AwsError(
                "LimitExceededException", f"A scalable target can have at most {MAX_ACTIONS} scheduled actions"
            )
        least, most = _check_bounds(parameters, old)
        schedule, timezone = _check_schedule(parameters, old)
        start, end = _check_window(parameters)
        wall = self._clock()
        now = (await open_calendar(self._store, self._time_scale, wall)).time_at(wall)
        await self._store.put_action(
            ScheduledAction(
                resource_id=resource_id,
                name=name,
                arn=self._arns.scheduled_action(target.arn, resource_id, name),
                created_at=old.created_at if old else wall,
                schedule=schedule,
                timezone=timezone,
                start_at=start,
                end_at=end,
                min_capacity=least,
                max_capacity=most,
                next_run_at=next_run(schedule, timezone, start, end, now),
            )
        )
        return {}

    async def delete(self, parameters: Parameters) -> Result:
        """Do as DeleteScheduledAction."""
        resource_id, name = parameters["ResourceId"], parameters["ScheduledActionName"]
        if (target := await self._store.target(resource_id)) is None:
            raise no_target(parameters, "found")
        if await self._store.action(resource_id, name) is None:
            raise AwsError(
                "ObjectNotFoundException",
                f"No scheduled action found for service namespace: {NAMESPACE}, scalable target ID: "
                f"{target_id_of(target.arn)}, scheduled action name: {name}",
            )
        await self._store.delete_action(resource_id, name)
        return {}

    async def describe(self, parameters: Parameters) -> Result:
        """Do as DescribeScheduledActions."""
        check_filter(parameters)
        names = parameters.get("ScheduledActionNames", [])
        actions = await self._store.actions(parameters.get("ResourceId"))
        wanted = [action for action in actions if not names or action.name in names]
        shown = page(wanted, lambda action: [action.resource_id, action.name], parameters, MAX_PAGE)
        return {"ScheduledActions": list(map(describe_action, shown.rows)), "NextToken": shown.next_token}


def _check_bounds(parameters: Parameters, old: ScheduledAction | None) -> tuple[int | None, int | None]:
    """Return the bounds that the action sets. Raises AwsError."""
    bounds = parameters.get("ScalableTargetAction")
    if bounds is None:
        if old is None:
            raise invalid("ScalableTargetAction must be set")
        return old.min_capacity, old.max_capacity
    least, most = bounds.get("MinCapacity"), bounds.get("MaxCapacity")
    if least is None and most is None:
        raise invalid("At least one of minimum capacity and maximum capacity should be provided")
    if least is not None and least < 0:
        raise invalid("Minimum capacity cannot be less than 0")
    if most is not None and most < (least or 0):
        word = "0" if least is None else "minimum capacity"
        raise invalid(f"Maximum capacity cannot be less than {word}")
    return least, most


def _check_window(parameters: Parameters) -> tuple[float | None, float | None]:
    """Return StartTime and EndTime. Raises AwsError."""
    start, end = parameters.get("StartTime"), parameters.get("EndTime")
    for name, time in (("StartTime", start), ("EndTime", end)):
        if time is not None and not 0 <= time < _YEAR_10000:
            raise invalid(f"{name} must be between the years 1970 and 9999")  # no client can read others
    if start is not None and end is not None and start >= end:
        raise invalid("StartTime must be before EndTime")
    return start, end


def _check_schedule(parameters: Parameters, old: ScheduledAction | None) -> tuple[str, str | None]:
    """Return the schedule and its time zone. Raises AwsError."""
    schedule = parameters.get("Schedule", old.schedule if old else None)
    timezone = parameters.get("Timezone", old.timezone if old else None)
    if schedule is None:
        raise invalid("Schedule must be set")
    try:
        check_schedule(schedule, timezone)
    except ScheduleError as error:
        raise invalid(str(error)) from None
    return schedule, timezone
