"""Cron expressions as AWS has them: minute, hour, day of month, month, day of week, year, and perhaps seconds in front.

AWS's sentences about them are those of Quartz, the Java library, whose grammar it is: `?`, `L`, `LW`, `L-3`, `15W`,
`FRIL`, `FRI#2`, lists, steps, names in any case, and ranges that wrap around (`FRI-MON`). Days of the week are 1 (SUN)
to 7 (SAT). One of the two fields of days is `?`. Seconds are read and not kept to: schedules run at whole minutes.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import partial

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_SATURDAY = 7
_RANGE = re.compile(r"(?P<first>\*|[A-Z]{3}|\d+)?(?:-(?P<last>[A-Z]{3}|\d+))?(?:/(?P<step>\d+))?", re.ASCII)
_LAST_DAY = re.compile(r"L(?:-(?P<before>\d+))?(?P<weekday>W)?", re.ASCII)
_NEAR_DAY = re.compile(r"(?P<day>\d+)W", re.ASCII)
_NTH = re.compile(r"(?P<day>[A-Z]{3}|\d)#(?P<nth>\d+)", re.ASCII)
_LAST = re.compile(r"(?P<day>[A-Z]{3}|\d)?L", re.ASCII)

_DayTest = Callable[[date], bool]


class CronError(ValueError):
    """An expression can't be read. The message has AWS's words, with the position of the field that is wrong."""

    def __init__(self, position: int, details: str) -> None:
        super().__init__(f"Invalid CRON expression: error at position {position}, details: {details}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """One kind of field, with its first and last value."""

    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()
    """Names of the values, from the first on."""

    def values(self, text: str, position: int) -> frozenset[int]:
        """Return the values that a list of single ones, ranges and steps has. Raises CronError."""
        return frozenset(value for part in text.split(",") for value in self._values(part, position))

    def value(self, text: str, position: int) -> int:
        """Return the value of a number or a name. Raises CronError."""
        if text in self.names:
            return self.names.index(text) + self.least
        if not text.isdecimal():
            raise CronError(position, f"Invalid {self.name} value: '{text}'")
        if not self.least <= (value := _number(text)) <= self.most:
            raise CronError(position, f"{self.name} values must be between {self.least} and {self.most}")
        return value

    def _values(self, text: str, position: int) -> range | list[int]:
        found = _RANGE.fullmatch(text)
        if not text or found is None or (found["first"] in (None, "*") and found["last"]):
            raise CronError(position, f"Illegal {self.name} format: '{text}'")
        is_open = found["first"] in (None, "*")
        first = self.least if is_open else self.value(found["first"], position)
        step = _number(found["step"]) if found["step"] else 1
        if not 1 <= step <= max(self.most, 1):
            raise CronError(position, f"Increment > {self.most} or < 1: {step}")
        if found["last"]:
            last = self.value(found["last"], position)
        else:
            last = self.most if is_open or found["step"] else first
        if last >= first:
            return range(first, last + 1, step)
        if self is _YEAR:
            raise CronError(position, f"Invalid {self.name} range: '{text}'")
        count = self.most - self.least + 1  # the range goes on at the first value
        return [(value - self.least) % count + self.least for value in range(first, last + count + 1, step)]


_SECOND = _Field(name="Second", least=0, most=59)
_MINUTE = _Field(name="Minute", least=0, most=59)
_HOUR = _Field(name="Hour", least=0, most=23)
_DAY_OF_MONTH = _Field(name="Day-of-Month", least=1, most=31)
_MONTH = _Field(name="Month", least=1, most=12, names=_MONTHS)
_DAY_OF_WEEK = _Field(name="Day-of-Week", least=1, most=7, names=_DAYS)
_YEAR = _Field(name="Year", least=1970, most=2199)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """A cron expression, in local time of no particular time zone."""

    times: tuple[time, ...]
    """Times of a day, in their order."""
    months: tuple[int, ...]
    years: tuple[int, ...]
    is_day: Callable[[date], bool]
    """Function that tells whether a date is one of its days, by whichever of the two fields isn't `?`."""
    seconds: frozenset[int]
    """Seconds of a seven-field expression."""

    def local_times(self, first: date) -> Iterator[datetime]:
        """Yield the local times at which it runs, from a date on, in their order."""
        for year in self.years:
            for month in self.months:
                if (year, month) < (first.year, first.month):
                    continue
                for day in range(1, calendar.monthrange(year, month)[1] + 1):
                    if (today := date(year, month, day)) >= first and self.is_day(today):
                        yield from (datetime.combine(today, at) for at in self.times)


def parse_cron(text: str) -> Cron:
    """Read what is between the brackets of `cron(...)`. Raises CronError."""
    text = text.upper()
    words = [(found[0], found.start()) for found in re.finditer(r"\S+", text)]
    if len(words) < 6:
        raise CronError(len(text), "Unexpected end of expression.")
    if len(words) > 7:
        raise CronError(words[7][1], "Unexpected text after the year.")
    seconds = _SECOND.values(*words[0]) if len(words) == 7 else frozenset([0])
    minute, hour, day_of_month, month, day_of_week, year = words[-6:]
    for word, position in (minute, hour, month, year):
        if "?" in word:
            raise CronError(position, "'?' can only be specified for Day-of-Month or Day-of-Week.")
    return Cron(
        times=tuple(time(h, m) for h in sorted(_HOUR.values(*hour)) for m in sorted(_MINUTE.values(*minute))),
        months=tuple(sorted(_MONTH.values(*month))),
        years=tuple(sorted(_YEAR.values(*year))),
        is_day=_day_test(day_of_month, day_of_week),
        seconds=seconds,
    )


def _day_test(day_of_month: tuple[str, int], day_of_week: tuple[str, int]) -> _DayTest:
    of_month, of_week = day_of_month[0] != "?", day_of_week[0] != "?"
    if of_month and of_week:
        raise CronError(0, "Specifying both a day-of-week AND a day-of-month parameter is not supported.")
    if not of_month and not of_week:
        raise CronError(day_of_week[1], "'?' can only be specified for Day-of-Month -OR- Day-of-Week.")
    return _month_day_test(*day_of_month) if of_month else _week_day_test(*day_of_week)


def _month_day_test(text: str, position: int) -> _DayTest:
    if last := _LAST_DAY.fullmatch(text):
        if (before := _number(last["before"] or "0")) > 30:
            raise CronError(position, "Offset from last day must be <= 30")
        return partial(_is_before_last, before, last["weekday"] is not None)
    if near := _NEAR_DAY.fullmatch(text):
        return partial(_is_nearest_weekday, _DAY_OF_MONTH.value(near["day"], position))
    if "L" in text:
        details = "Support for specifying 'L' and 'LW' with other days of the month is not implemented"
        raise CronError(position, details)
    if "W" in text:
        raise CronError(position, "The 'W' option must follow the one day of the month")
    days = _DAY_OF_MONTH.values(text, position)
    return lambda today: today.day in days


def _week_day_test(text: str, position: int) -> _DayTest:
    if nth := _NTH.fullmatch(text):
        if not 1 <= (number := _number(nth["nth"])) <= 5:
            raise CronError(position, "A numeric value between 1 and 5 must follow the '#' option")
        return partial(_is_nth, _DAY_OF_WEEK.value(nth["day"], position), number)
    if last := _LAST.fullmatch(text):
        if last["day"]:
            return partial(_is_last, _DAY_OF_WEEK.value(last["day"], position))
        return lambda today: _day_of_week(today) == _SATURDAY
    if "L" in re.sub("[A-Z]{3}", "", text):
        raise CronError(position, "Support for specifying 'L' with other days of the week is not implemented")
    if "#" in text:
        raise CronError(position, 'Support for specifying multiple "nth" days is not implemented.')
    days = _DAY_OF_WEEK.values(text, position)
    return lambda today: _day_of_week(today) in days


def _number(digits: str) -> int:
    """Return the number, or a larger one than any field has."""
    return int(digits[-5:]) if int(digits[:-5] or "0") == 0 else 99999


def _day_of_week(today: date) -> int:
    return today.isoweekday() % 7 + 1


def _days_of_month(today: date) -> int:
    return calendar.monthrange(today.year, today.month)[1]


def _nearest_weekday(today: date) -> date:
    """Return the day from Monday to Friday that is nearest, within the same month."""
    if (weekday := today.isoweekday()) <= 5:
        return today
    is_saturday = weekday == 6
    if is_saturday:
        return today - timedelta(days=1) if today.day > 1 else today + timedelta(days=2)
    return today + timedelta(days=1) if today.day < _days_of_month(today) else today - timedelta(days=2)


def _is_before_last(before: int, on_weekday: bool, today: date) -> bool:
    day = _days_of_month(today) - before
    if day < 1:
        return False
    wanted = today.replace(day=day)
    return today == (_nearest_weekday(wanted) if on_weekday else wanted)


def _is_nearest_weekday(day: int, today: date) -> bool:
    return day <= _days_of_month(today) and today == _nearest_weekday(today.replace(day=day))


def _is_nth(day_of_week: int, nth: int, today: date) -> bool:
    return _day_of_week(today) == day_of_week and (today.day - 1) // 7 + 1 == nth


def _is_last(day_of_week: int, today: date) -> bool:
    return _day_of_week(today) == day_of_week and today.day + 7 > _days_of_month(today)
