from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from endpoint.autoscaling.cron import CronError, parse_cron
from endpoint.autoscaling.schedules import next_run

ZONES = ("UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Havana")
AFTER = datetime(2027, 1, 15, 8, 0, tzinfo=UTC).timestamp()
"""A Friday."""


def runs(expression: str, count: int, after: float = AFTER, zone: str | None = None) -> list[str]:
    """Return the next runs, in the zone's local time with its offset."""
    shown = []
    while len(shown) < count and (at := next_run(expression, zone, None, None, after)) is not None:
        shown.append(datetime.fromtimestamp(at, ZoneInfo(zone or "UTC")).isoformat(timespec="minutes"))
        after = at
    return [text.removesuffix("+00:00") if zone is None else text for text in shown]


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param("0 10 * * ? *", ["2027-01-15T10:00", "2027-01-16T10:00"], id="every day"),
        pytest.param("0 8 * * ? *", ["2027-01-16T08:00"], id="not at the time itself"),
        pytest.param("15 12 ? * * *", ["2027-01-15T12:15"], id="any day of the week"),
        pytest.param("0 18 ? * MON-FRI *", ["2027-01-15T18:00", "2027-01-18T18:00"], id="weekdays"),
        pytest.param("0 18 ? * 2-6 *", ["2027-01-15T18:00", "2027-01-18T18:00"], id="weekdays by number"),
        pytest.param("0 18 ? * FRI-MON *", ["2027-01-15T18:00", "2027-01-16T18:00"], id="range over the week's end"),
        pytest.param("0 0 1 * ? *", ["2027-02-01T00:00", "2027-03-01T00:00"], id="first of the month"),
        pytest.param("0 22-1 1 FEB ? *", ["2027-02-01T00:00", "2027-02-01T01:00"], id="range over midnight"),
        pytest.param("0/20 9 * * ? *", ["2027-01-15T09:00", "2027-01-15T09:20"], id="step from a value"),
        pytest.param("*/30 9 * * ? *", ["2027-01-15T09:00", "2027-01-15T09:30"], id="step of all"),
        pytest.param("10-50/20 9 * * ? *", ["2027-01-15T09:10", "2027-01-15T09:30"], id="step in a range"),
        pytest.param("0 6,9 * * ? *", ["2027-01-15T09:00", "2027-01-16T06:00"], id="list"),
        pytest.param("0 9 * jan,Jul ? *", ["2027-01-15T09:00"], id="names in any case"),
        pytest.param("0 9 L * ? *", ["2027-01-31T09:00", "2027-02-28T09:00"], id="last day of the month"),
        pytest.param("0 9 L-3 * ? *", ["2027-01-28T09:00", "2027-02-25T09:00"], id="third before the last day"),
        pytest.param("0 9 LW * ? *", ["2027-01-29T09:00", "2027-02-26T09:00"], id="last weekday of the month"),
        pytest.param("0 9 1W * ? *", ["2027-02-01T09:00", "2027-03-01T09:00"], id="first weekday of the month"),
        pytest.param("0 9 1W 5 ? *", ["2027-05-03T09:00"], id="weekday near a Saturday stays in its month"),
        pytest.param("0 9 16W 1 ? *", ["2027-01-15T09:00"], id="weekday before a Saturday"),
        pytest.param("0 9 17W 1 ? *", ["2027-01-18T09:00"], id="weekday after a Sunday"),
        pytest.param("0 9 31W 1 ? *", ["2027-01-29T09:00"], id="weekday near a Sunday stays in its month"),
        pytest.param("0 9 ? * L *", ["2027-01-16T09:00", "2027-01-23T09:00"], id="last day of the week"),
        pytest.param("0 9 ? * 6L *", ["2027-01-29T09:00", "2027-02-26T09:00"], id="last Friday of the month"),
        pytest.param("0 9 ? * FRI#3 *", ["2027-01-15T09:00", "2027-02-19T09:00"], id="third Friday of the month"),
        pytest.param("0 9 ? * 6#5 *", ["2027-01-29T09:00", "2027-04-30T09:00"], id="fifth Friday of some months"),
        pytest.param("0 9 29 2 ? *", ["2028-02-29T09:00", "2032-02-29T09:00"], id="leap days"),
        pytest.param("0 9 30 2 ? *", [], id="a day that never is"),
        pytest.param("0 9 1 1 ? 2026", [], id="a year that is over"),
        pytest.param("0 9 1 1 ? 2030,2035", ["2030-01-01T09:00", "2035-01-01T09:00"], id="years"),
        pytest.param("0 9 1 1 ? 2028/4", ["2028-01-01T09:00", "2032-01-01T09:00"], id="step of years"),
        pytest.param("30 0 9 * * ? *", ["2027-01-15T09:00"], id="seconds aren't kept to"),
    ],
)
def test_cron_runs(fields: str, expected: list[str]) -> None:
    assert runs(f"cron({fields})", max(len(expected), 1)) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param("", "error at position 0, details: Unexpected end of expression.", id="nothing"),
        pytest.param("60 * * * ? *", "0, details: Minute values must be between 0 and 59", id="minute"),
        pytest.param("* 24 * * ? *", "2, details: Hour values must be between 0 and 23", id="hour"),
        pytest.param("* * 0 * ? *", "4, details: Day-of-Month values must be between 1 and 31", id="day"),
        pytest.param("* * * 13 ? *", "6, details: Month values must be between 1 and 12", id="month"),
        pytest.param("* * ? * 8 *", "8, details: Day-of-Week values must be between 1 and 7", id="day of the week"),
        pytest.param("* * * * ? 1969", "10, details: Year values must be between 1970 and 2199", id="year"),
        pytest.param("* * ? * DAY *", "8, details: Invalid Day-of-Week value: 'DAY'", id="name"),
        pytest.param("1- * * * ? *", "0, details: Illegal Minute format: '1-'", id="half a range"),
        pytest.param("1,, * * * ? *", "0, details: Illegal Minute format: ''", id="empty entry"),
        pytest.param("0/0 * * * ? *", "0, details: Increment > 59 or < 1: 0", id="step of zero"),
        pytest.param("0/60 * * * ? *", "0, details: Increment > 59 or < 1: 60", id="step too long"),
        pytest.param("? * * * ? *", "0, details: '?' can only be specified for Day-of-Month or", id="? for minutes"),
        pytest.param("* * ? * ? *", "8, details: '?' can only be specified for Day-of-Month -OR-", id="? twice"),
        pytest.param("* * L,15 * ? *", "4, details: Support for specifying 'L' and 'LW' with other", id="L in a list"),
        pytest.param("* * 1W,15 * ? *", "4, details: The 'W' option must follow the one day", id="W in a list"),
        pytest.param("* * ? * 2L,3 *", "8, details: Support for specifying 'L' with other days", id="L with days"),
        pytest.param("* * ? * 2#1,3#1 *", '8, details: Support for specifying multiple "nth" days', id="# twice"),
        pytest.param("* * ? * 2#6 *", "8, details: A numeric value between 1 and 5 must follow", id="sixth Monday"),
        pytest.param("* * * * ? 2030-2028", "10, details: Invalid Year range: '2030-2028'", id="years backwards"),
        pytest.param("0 0 0 1 1 ? 2030 x", "17, details: Unexpected text after the year.", id="eight fields"),
        pytest.param("99999999999 * * * ? *", "0, details: Minute values must be between", id="a large number"),
        pytest.param("\u0663 * * * ? *", "0, details: Illegal Minute format", id="other digits"),
    ],
)
def test_cron_is_refused(fields: str, message: str) -> None:
    with pytest.raises(CronError) as refused:
        parse_cron(fields)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        pytest.param(
            "cron(0 9 * * ? *)",
            "America/New_York",
            "2027-03-13T12:00",
            ["2027-03-13T09:00-05:00", "2027-03-14T09:00-04:00"],
            id="local time stays over a change",
        ),
        pytest.param(
            "cron(30 2 * * ? *)",
            "America/New_York",
            "2027-03-13T12:00",
            ["2027-03-15T02:30-04:00"],
            id="a skipped time doesn't run",
        ),
        pytest.param(
            "cron(0/30 1-3 14 3 ? 2027)",
            "America/New_York",
            "2027-03-13T12:00",
            ["2027-03-14T01:00-05:00", "2027-03-14T01:30-05:00", "2027-03-14T03:00-04:00", "2027-03-14T03:30-04:00"],
            id="times around a gap",
        ),
        pytest.param(
            "cron(30 1 * * ? *)",
            "America/New_York",
            "2027-11-06T12:00",
            ["2027-11-07T01:30-04:00", "2027-11-08T01:30-05:00"],
            id="a repeated time runs once",
        ),
        pytest.param(
            "cron(30 23 6 11 ? *)",
            "America/Havana",
            "2027-11-06T12:00",
            ["2027-11-06T23:30-04:00"],
            id="clocks put back at one in the morning",
        ),
        pytest.param(
            "at(2027-11-07T01:30:00)",
            "America/New_York",
            "2027-11-06T12:00",
            ["2027-11-07T01:30-04:00"],
            id="at a repeated time",
        ),
        pytest.param(
            "at(2027-06-01T12:00:00)", "Asia/Tokyo", "2027-01-01T00:00", ["2027-06-01T12:00+09:00"], id="at in a zone"
        ),
        pytest.param(
            "rate(1 day)",
            "America/New_York",
            "2027-03-13T12:00",
            ["2027-03-14T08:00-04:00", "2027-03-15T08:00-04:00"],
            id="a rate is of hours that pass",
        ),
    ],
)
def test_time_zones_count(expression: str, zone: str, after: str, expected: list[str]) -> None:
    assert runs(expression, len(expected), utc(after), zone) == expected


@pytest.mark.parametrize(
    ("expression", "start", "end", "after", "expected"),
    [
        pytest.param("rate(1 hour)", None, None, "2027-01-01T00:10", "2027-01-01T01:10", id="rate counts from the put"),
        pytest.param(
            "rate(1 hour)", "2027-01-01T00:00", None, "2027-01-01T00:10", "2027-01-01T01:00", id="rate from the start"
        ),
        pytest.param(
            "rate(1 hour)", "2027-01-01T00:00", None, "2027-01-01T01:00", "2027-01-01T02:00", id="rate at its time"
        ),
        pytest.param(
            "rate(1 hour)", "2027-02-01T00:00", None, "2027-01-01T00:10", "2027-02-01T00:00", id="rate at the start"
        ),
        pytest.param(
            "cron(0 9 * * ? *)",
            "2027-02-01T00:10",
            None,
            "2027-01-01T00:00",
            "2027-02-01T00:10",
            id="at the start",
        ),
        pytest.param(
            "cron(0 9 * * ? *)",
            "2027-02-01T00:10",
            None,
            "2027-02-01T00:10",
            "2027-02-01T09:00",
            id="cron after the start",
        ),
        pytest.param(
            "cron(0 9 * * ? *)", None, "2027-01-01T09:00", "2027-01-01T00:00", "2027-01-01T09:00", id="cron at the end"
        ),
        pytest.param("cron(0 9 * * ? *)", None, "2027-01-01T08:59", "2027-01-01T00:00", None, id="cron after the end"),
        pytest.param("rate(1 day)", None, "2027-01-01T12:00", "2027-01-01T00:00", None, id="rate after the end"),
        pytest.param("at(2027-01-02T00:00:00)", None, None, "2027-01-01T00:00", "2027-01-02T00:00", id="at its time"),
        pytest.param("at(2027-01-02T00:00:00)", None, None, "2027-01-02T00:00", None, id="at is over"),
        pytest.param(
            "at(2027-01-02T00:00:00)", "2027-01-03T00:00", None, "2027-01-01T00:00", None, id="at before the start"
        ),
        pytest.param(
            "at(2027-01-02T00:00:00)",
            "2027-01-01T12:00",
            None,
            "2027-01-01T00:00",
            "2027-01-02T00:00",
            id="at doesn't run at the start",
        ),
        pytest.param(
            "at(2027-01-02T00:00:00)", None, "2027-01-01T12:00", "2027-01-01T00:00", None, id="at after the end"
        ),
    ],
)
def test_window_counts(expression: str, start: str | None, end: str | None, after: str, expected: str | None) -> None:
    window = (start and utc(start), end and utc(end))
    assert next_run(expression, None, *window, utc(after)) == (expected and utc(expected))


def test_rate_goes_on_where_times_are_rounded() -> None:
    start = 2.0**31 - 60 + 2**-22  # 2038, from when on a float has one binary place less behind the point
    second = next_run("rate(1 minute)", None, start, None, start)
    assert second is not None and second > start
    third = next_run("rate(1 minute)", None, start, None, second)
    assert third is not None and third > second + 59


# Properties, against a search that looks at every minute


def numbers(least: int, most: int) -> st.SearchStrategy[set[int]]:
    return st.sets(st.integers(least, most), min_size=1, max_size=4)


def text_of(values: set[int]) -> str:
    return ",".join(map(str, sorted(values)))


times = st.datetimes(datetime(2027, 1, 1), datetime(2030, 1, 1))


@given(minutes=numbers(0, 59), hours=numbers(0, 23), days=numbers(1, 7), after=times)
@hypothesis_settings(max_examples=50, deadline=None)
def test_cron_finds_the_first_minute(minutes: set[int], hours: set[int], days: set[int], after: datetime) -> None:
    expression = f"cron({text_of(minutes)} {text_of(hours)} ? * {text_of(days)} *)"
    at = after.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while not (at.minute in minutes and at.hour in hours and at.isoweekday() % 7 + 1 in days):
        at += timedelta(minutes=1)
    assert next_run(expression, None, None, None, utc(after.isoformat())) == utc(at.isoformat())


@given(days=numbers(1, 31), months=numbers(1, 12), after=times)
@hypothesis_settings(max_examples=50, deadline=None)
def test_cron_finds_the_first_day(days: set[int], months: set[int], after: datetime) -> None:
    first = after.date() + timedelta(days=1)
    until = (first + timedelta(days=day) for day in range(9 * 366))
    expected = next((day for day in until if day.day in days and day.month in months), None)
    found = next_run(f"cron(0 0 {text_of(days)} {text_of(months)} ? *)", None, None, None, utc(after.isoformat()))
    assert found == (expected and utc(expected.isoformat()))


@given(zone=st.sampled_from(ZONES), minutes=numbers(0, 59), hours=numbers(0, 23), after=times)
@hypothesis_settings(max_examples=50, deadline=None)
def test_local_times_run_in_order_and_once(zone: str, minutes: set[int], hours: set[int], after: datetime) -> None:
    expression = f"cron({text_of(minutes)} {text_of(hours)} * * ? *)"
    at, found = utc(after.isoformat()), []
    for _ in range(50):
        following = next_run(expression, zone, None, None, at)
        assert following is not None and following > at
        at = following
        found.append(datetime.fromtimestamp(at, ZoneInfo(zone)))
    assert all(time.minute in minutes and time.hour in hours and time.fold == 0 for time in found)
    assert all(earlier.replace(tzinfo=None) < later.replace(tzinfo=None) for earlier, later in pairwise(found))


@given(st.integers(1, 31), st.integers(2027, 2032), st.integers(1, 12))
@hypothesis_settings(max_examples=50, deadline=None)
def test_nearest_weekday_is_in_the_month(day: int, year: int, month: int) -> None:
    found = list(islice(parse_cron(f"0 0 {day}W {month} ? {year}").local_times(date(year, month, 1)), 2))
    try:
        wanted = date(year, month, day)
    except ValueError:
        assert found == []
        return
    assert len(found) == 1 and found[0].isoweekday() <= 5
    assert found[0].month == month and abs((found[0].date() - wanted).days) <= 2
