"""When scheduled actions run: `cron(...)`, `rate(...)` and `at(...)`, in a time zone, between a start and an end.

Left open by Application Auto Scaling, and decided here:
- A cron time that a change to daylight-saving time skips doesn't run; one that the change back repeats runs once, the
  first time. EventBridge Scheduler documents both of itself. An `at` time that is skipped is refused.
- A rate counts from StartTime, else from the time at which the action was put: its first run is one period later.
- A run at EndTime itself still takes place.
"""

from __future__ import annotations

import calendar
import math
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from endpoint.autoscaling.cron import Cron, CronError, parse_cron

_SYNTAX = (
    "Schedule expressions must have the following syntax: rate(<number>\\s?(minutes?|hours?|days?)), "
    "cron(<cron_expression>) or at(yyyy-MM-dd'T'HH:mm:ss)."
)
_RATE = re.compile(r"rate\(\s*(?P<count>\d{1,9})\s?(?P<unit>minute|hour|day)s?\s*\)", re.ASCII)
_CRON = re.compile(r"cron\((?P<fields>[^()]*)\)")
_AT = re.compile(r"at\((?P<time>[^()]*)\)")
_AT_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", re.ASCII)
_TIME_FIELDS = (
    ("year", 1, 9999),
    ("monthOfYear", 1, 12),
    ("dayOfMonth", 1, 31),
    ("hourOfDay", 0, 23),
    ("minuteOfHour", 0, 59),
    ("secondOfMinute", 0, 59),
)
_UNITS_S = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}

Schedule = Cron | datetime | timedelta
"""Parsed schedule expression: a cron, the local time of an `at`, the period of a rate."""


class ScheduleError(ValueError):
    """A schedule or its time zone is refused. The message is AWS's."""


def check_schedule(expression: str, timezone: str | None) -> None:
    """Raise ScheduleError if a schedule can't be read, or runs more than once a minute."""
    schedule, zone = parse_schedule(expression), find_zone(timezone)
    if isinstance(schedule, datetime):
        try:
            is_shown = _instant(schedule, zone) is not None
        except OverflowError:  # it is in the year 0 or 10000 elsewhere
            raise _unreadable_time(schedule.isoformat(), "Instant exceeds minimum or maximum instant") from None
        if not is_shown:
            reason = f"Illegal instant due to time zone offset transition ({timezone})"
            raise _unreadable_time(schedule.isoformat(), reason)


@lru_cache(maxsize=1024)
def parse_schedule(expression: str) -> Schedule:
    """Read a schedule expression. Raises ScheduleError."""
    if rate := _RATE.fullmatch(expression):
        period_s = int(rate["count"]) * _UNITS_S[rate["unit"]]
        if period_s < 60:
            raise _too_frequent(0, period_s)
        return timedelta(seconds=period_s)
    if cron := _CRON.fullmatch(expression):
        try:
            parsed = parse_cron(cron["fields"])
        except CronError as error:
            raise ScheduleError(f"Invalid schedule expression. Details: {error}") from None
        if len(parsed.seconds) > 1:
            raise _too_frequent(*sorted(parsed.seconds)[:2])
        return parsed
    if at := _AT.fullmatch(expression):
        return _parse_time(at["time"].strip())
    raise ScheduleError(f"Invalid schedule expression. Details: {_SYNTAX}")


@lru_cache(maxsize=1024)
def find_zone(timezone: str | None) -> ZoneInfo:
    """Return the time zone of a canonical name; UTC without a name. Raises ScheduleError."""
    if timezone is not None and timezone not in available_timezones():
        raise ScheduleError(f"Invalid schedule timezone: {timezone}")
    return ZoneInfo(timezone or "UTC")


def next_run(
    expression: str, timezone: str | None, start: float | None, end: float | None, after: float
) -> float | None:
    """Return when an action runs next after a time; None: never. All times are seconds since the epoch.

    A recurring action runs at `start`, too. A rate without a start counts from `after`. Raises ScheduleError.
    """
    schedule, zone = parse_schedule(expression), find_zone(timezone)
    if isinstance(schedule, datetime):
        at = _instant(schedule, zone)
        run = at if at is not None and at > after and (start is None or at >= start) else None
    elif start is not None and after < start:
        run = start
    elif isinstance(schedule, timedelta):
        base, period_s = after if start is None else start, schedule.total_seconds()
        periods = math.floor((after - base) / period_s) + 1
        run = base + periods * period_s
        if run <= after:  # rounded down, as happens where the times get so large that they have fewer binary places
            run = base + (periods + 1) * period_s
    else:
        run = _next_cron_run(schedule, zone, after)
    return run if run is not None and (end is None or run <= end) else None


def _next_cron_run(cron: Cron, zone: ZoneInfo, after: float) -> float | None:
    for local in cron.local_times(datetime.fromtimestamp(after, zone).date()):
        at = _instant(local, zone)
        if at is not None and at > after:
            return at
    return None


def _instant(local: datetime, zone: ZoneInfo) -> float | None:
    """Return the first time at which clocks of a zone show a local time; None if they skip it."""
    aware = local.replace(tzinfo=zone, fold=0)
    at = aware.astimezone(UTC)
    is_shown = at.astimezone(zone).replace(tzinfo=None, fold=0) == local
    return at.timestamp() if is_shown else None


def _parse_time(text: str) -> datetime:
    if not _AT_TIME.fullmatch(text):
        raise ScheduleError(f"Invalid schedule expression. Details: {_SYNTAX}")
    year, month, day, hour, minute, second = values = [int(number) for number in re.findall(r"\d+", text)]
    for (name, least, most), value in zip(_TIME_FIELDS, values, strict=True):
        if name == "dayOfMonth":
            most = calendar.monthrange(year, month)[1]
        if not least <= value <= most:
            raise _unreadable_time(text, f"Value {value} for {name} must be in the range [{least},{most}]")
    return datetime(year, month, day, hour, minute, second)


def _unreadable_time(text: str, reason: str) -> ScheduleError:
    details = f'Invalid schedule at DateTime expression: Cannot parse "{text}": {reason}'
    return ScheduleError(f"Invalid schedule expression. Details: {details}")


def _too_frequent(first_s: float, second_s: float) -> ScheduleError:
    first, second = (
        f"{datetime.fromtimestamp(at, UTC).isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"
        for at in (first_s, second_s)
    )
    return ScheduleError(f"Invalid schedule frequency. Run for '{first}' and '{second}' are less than 60 seconds apart")
