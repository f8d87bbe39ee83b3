from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from endpoint.alarms.firing import Firing
from testing.endpoint.alarming import POLICY, START, TOPIC, AlarmWorld, in_world
from testing.endpoint.cut_line import running

SCALES = [1.0, 60.0, 600.0]


@pytest.mark.parametrize("time_scale", SCALES)
def test_three_breaching_minutes_raise_alarm(tmp_path: Path, time_scale: float) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a")
        states = []
        for value in (1, 9, 9, 9, 1):
            await world.minute(value, minute_s=60 / time_scale)
            states.append(await world.state())
        assert states == ["OK", "OK", "OK", "ALARM", "OK"]
        assert await world.history("StateUpdate") == [
            "Alarm updated from INSUFFICIENT_DATA to OK",
            "Alarm updated from OK to ALARM",
            "Alarm updated from ALARM to OK",
        ]

    in_world(tmp_path, work, time_scale=time_scale, now=START + 20 / time_scale)


def test_reason_and_times_are_the_transitions(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", EvaluationPeriods=2)
        for _ in range(4):
            await world.minute(9)
        (alarm,) = (await world.call("DescribeAlarms"))["MetricAlarms"]
        assert alarm["StateTransitionedTimestamp"] == alarm["StateUpdatedTimestamp"] == START + 120
        assert alarm["StateReason"].startswith("Threshold Crossed: 2 datapoints [9.0 (14/09/26 05:41:00), 9.0 (")
        data = json.loads(alarm["StateReasonData"])
        assert (data["recentDatapoints"], data["period"], data["threshold"]) == ([9, 9], 60, 5)

    in_world(tmp_path, work)


def test_data_from_before_alarm_count(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        world.publish(9, 9, 9)
        world.now += 60
        await world.put("a")
        await world.evaluator.tick(world.now)
        assert await world.state() == "ALARM"

    in_world(tmp_path, work)


def test_running_minute_counts_not_yet(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", EvaluationPeriods=1)
        world.publish(9)
        world.now += 50
        await world.evaluator.tick(world.now)
        assert await world.state() == "INSUFFICIENT_DATA"
        world.now += 10
        await world.evaluator.tick(world.now)
        assert await world.state() == "ALARM"

    in_world(tmp_path, work)


def test_silence_leads_to_insufficient_data(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", InsufficientDataActions=[TOPIC])
        await world.minute(1)
        for _ in range(6):
            await world.minute()
        assert await world.state() == "INSUFFICIENT_DATA"
        assert await world.notices() == [(TOPIC, 'INSUFFICIENT_DATA: "a" in EU (Ireland)')]

    in_world(tmp_path, work)


def test_short_periods_are_judged_every_ten_seconds(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", Period=10, EvaluationPeriods=2)
        states = []
        for value in (1, 9, 9, 1):
            await world.minute(value, minute_s=10, StorageResolution=1)
            states.append(await world.state())
        assert states == ["OK", "OK", "ALARM", "OK"]

    in_world(tmp_path, work)


def test_long_windows_are_judged_hourly(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", Period=3600, EvaluationPeriods=25, DatapointsToAlarm=1, TreatMissingData="notBreaching")
        await world.minute()
        assert await world.state() == "OK"
        minutes = 0
        while await world.state() == "OK":
            await world.minute(9)
            minutes += 1
        assert minutes == 60 - START % 3600 / 60 - 1

    in_world(tmp_path, work)


def test_policies_run_each_minute_in_alarm(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", EvaluationPeriods=2, AlarmActions=[POLICY, TOPIC])
        for value in (8, 9, 10, 11, 1, 1):
            await world.minute(value)
        assert world.fired == [
            [Firing(action=POLICY, alarm="a", values=values, threshold=5, is_above=True, at=START + 60 * minute)]
            for minute, values in ((2, (8, 9)), (3, (9, 10)), (4, (10, 11)))
        ]
        assert await world.notices() == [(TOPIC, 'ALARM: "a" in EU (Ireland)')]
        assert await world.history("Action") == [f"Successfully executed action {POLICY}"]

    in_world(tmp_path, work)


def test_short_alarm_runs_policies_each_minute(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", Period=10, EvaluationPeriods=1, AlarmActions=[POLICY])
        for _ in range(13):
            await world.minute(9, minute_s=10, StorageResolution=1)
        assert [firings[0].at - START for firings in world.fired] == [10, 70, 130]

    in_world(tmp_path, work)


def test_one_evaluation_fires_all_alarms_at_once(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("high", EvaluationPeriods=1, AlarmActions=[POLICY, f"{POLICY}2"])
        low = {"Threshold": 20.0, "ComparisonOperator": "LessThanThreshold"}
        await world.put("low", EvaluationPeriods=1, AlarmActions=[POLICY], **low)
        await world.put("disabled", EvaluationPeriods=1, AlarmActions=[POLICY], ActionsEnabled=False)
        await world.minute(9)
        ((*firings,),) = world.fired
        assert [(firing.alarm, firing.action[-1], firing.is_above) for firing in firings] == [
            ("high", "p", True),
            ("high", "2", True),
            ("low", "p", False),
        ]

    in_world(tmp_path, work)


def test_history_tells_changed_outcomes(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", EvaluationPeriods=1, AlarmActions=[POLICY])
        for error in ("no such policy", "no such policy", None, None):
            world.error = error
            await world.minute(9)
        verbs = ("Failed to execute action", "Successfully executed action")
        assert await world.history("Action") == [f"{verb} {POLICY}" for verb in verbs]
        items = (await world.call("DescribeAlarmHistory", HistoryItemType="Action"))["AlarmHistoryItems"]
        assert json.loads(items[1]["HistoryData"])["error"] == "no such policy"
        assert json.loads(items[0]["HistoryData"])["stateUpdateTimestamp"] == (START + 60) * 1000

    in_world(tmp_path, work)


def test_failing_policies_stop_no_evaluation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(world: AlarmWorld) -> None:
        world.exception = RuntimeError("broken")
        await world.put("a", EvaluationPeriods=1, AlarmActions=[POLICY])
        await world.minute(9)
        await world.minute(1)
        assert await world.state() == "OK"
        assert await world.history("Action") == [f"Failed to execute action {POLICY}"]

    in_world(tmp_path, work)
    assert "broken" in caplog.text


def test_failing_alarm_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a")
        await world.put("b", EvaluationPeriods=1)
        broken = await world.alarm("a")
        await world.store.put([replace(broken, configuration=broken.configuration | {"Statistic": "Mode"})])
        await world.minute(9)
        assert await world.state("b") == "ALARM"
        assert "Alarm a could not be evaluated" in caplog.text

    in_world(tmp_path, work)


def test_unwritten_evaluation_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def work(world: AlarmWorld) -> None:
        await world.put("a", EvaluationPeriods=1, AlarmActions=[POLICY])
        await world.minute(9)
        await world.put("b", EvaluationPeriods=1, AlarmActions=[POLICY])
        with monkeypatch.context() as patches, pytest.raises(sqlite3.OperationalError):
            patches.setattr(world.store, "put", refuse)
            await world.minute(9)
        world.now += 10
        await world.evaluator.tick(world.now)
        assert [[firing.alarm for firing in firings] for firings in world.fired] == [["a"], ["a", "b"]]

    in_world(tmp_path, work)


def test_alarm_on_missing_data_scales_nothing(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", AlarmActions=[POLICY], TreatMissingData="breaching")
        for _ in range(3):
            await world.minute()
        assert await world.state() == "ALARM" and world.fired == []
        assert await world.history("Action") == [f"Failed to execute action {POLICY}"]

    in_world(tmp_path, work)


def test_set_state_lasts_until_next_evaluation(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a")
        await world.minute(1)
        await world.call("SetAlarmState", AlarmName="a", StateValue="ALARM", StateReason="test")
        await world.minute(1)
        assert await world.history("StateUpdate") == [
            "Alarm updated from INSUFFICIENT_DATA to OK",
            "Alarm updated from OK to ALARM",
            "Alarm updated from ALARM to OK",
        ]

    in_world(tmp_path, work)


@pytest.mark.parametrize("is_full", [False, True], ids=["ends early", "waits the full time"])
def test_warm_up_delays_the_first_state(tmp_path: Path, is_full: bool) -> None:
    async def work(world: AlarmWorld) -> None:
        options = {"WarmUpPeriodDurationInMinutes": 5, "OnlyStartEvaluatingAfterWarmUpPeriodEnds": is_full}
        await world.put("a", WarmUpConfiguration=options, AlarmActions=[POLICY])
        states = []
        for _ in range(6):
            await world.minute(9)
            states.append(await world.state())
        assert states.count("INSUFFICIENT_DATA") == (4 if is_full else 2) and states[-1] == "ALARM"
        assert len(world.fired) == states.count("ALARM")

    in_world(tmp_path, work)


def test_too_few_samples_keep_state_if_asked(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        p90 = {"Statistic": None, "ExtendedStatistic": "p90", "EvaluationPeriods": 1}
        await world.put("kept", EvaluateLowSampleCountPercentile="ignore", **p90)
        await world.put("judged", **p90)
        await world.minute(*[9.0] * 99)
        assert (await world.state("kept"), await world.state("judged")) == ("INSUFFICIENT_DATA", "ALARM")
        await world.minute(*[9.0] * 100)
        assert await world.state("kept") == "ALARM"

    in_world(tmp_path, work)


def test_killed_gateway_acts_again_at_once(tmp_path: Path) -> None:
    async def first(world: AlarmWorld) -> None:
        await world.put("a", AlarmActions=[POLICY, TOPIC])
        for value in (9, 10, 11):
            await world.minute(value)
        assert len(world.fired) == 1  # and killed: nothing is closed but the database

    async def second(world: AlarmWorld) -> None:
        await world.evaluator.restore(world.now)
        await world.evaluator.tick(world.now)
        assert [firing.values for firings in world.fired for firing in firings] == [(9, 10, 11)]
        assert await world.history("StateUpdate") == ["Alarm updated from INSUFFICIENT_DATA to ALARM"]
        assert len(await world.notices()) == 1

    in_world(tmp_path, first)
    in_world(tmp_path, second, now=START + 185)


def test_clock_set_back_stops_no_policy(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", EvaluationPeriods=1, AlarmActions=[POLICY])
        await world.minute(9)
        world.now -= 1800
        await world.minute(9)
        await world.minute(9)
        assert [firings[0].at - START for firings in world.fired] == [60, -1680, -1620]

    in_world(tmp_path, work)


def test_end_writes_last_values(tmp_path: Path) -> None:
    async def first(world: AlarmWorld) -> None:
        await world.put("a", EvaluationPeriods=1)
        async with running(world.evaluator.run):
            await asyncio.sleep(0)
            await world.store.points()  # behind the evaluator, which reads them first
            world.publish(9)

    async def second(world: AlarmWorld) -> None:
        await world.evaluator.restore(world.now)
        await world.minute()
        assert await world.state() == "ALARM"

    in_world(tmp_path, first)
    in_world(tmp_path, second)


def test_evaluation_follows_the_clock(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", EvaluationPeriods=1, AlarmActions=[POLICY])
        for number in range(1000):  # the next hundred seconds, 0.1 s a minute
            world.publish(9, Timestamp=time.time() + number / 10)
        async with running(world.evaluator.run), asyncio.timeout(30):
            await world.has_fired.get()
            await world.has_fired.get()

    in_world(tmp_path, work, time_scale=600, clock=time.time)


def test_clock_set_back_delays_no_evaluation(tmp_path: Path) -> None:
    now = START
    looks: asyncio.Queue[None] = asyncio.Queue()

    def clock() -> float:
        looks.put_nowait(None)
        return now

    async def work(world: AlarmWorld) -> None:
        nonlocal now
        await world.put("a", EvaluationPeriods=1, AlarmActions=[POLICY])
        async with running(world.evaluator.run), asyncio.timeout(30):
            for later_s in (0.1, -1800):
                while not looks.empty():
                    looks.get_nowait()
                for _ in range(4):  # then it waits for its clock, which stands still
                    await looks.get()
                now = START + later_s
                world.publish(9, Timestamp=now - 0.1)
                await world.has_fired.get()
        assert [firings[0].at for firings in world.fired] == [START + 0.1, START - 1800]

    in_world(tmp_path, work, time_scale=600, clock=clock)
