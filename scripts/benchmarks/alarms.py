"""Alarms that one core looks at in a second: their values read from the series, judged, and what follows decided.

Each endpoint has the two alarms of a target-tracking policy and the alarm of a step policy. All metrics have an hour of
values. The last column is the evaluator's whole pass, with its transaction in SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from endpoint.alarms.alarm import Alarm, new_alarm
from endpoint.alarms.evaluation import read, state_of, values_of
from endpoint.alarms.series import Series
from endpoint.autoscaling.decisions import Step, StepPolicy, Target, TrackingPolicy, Trigger, decide
from testing.endpoint.alarming import POLICY, START, AlarmWorld

MIN_ALARMS_A_SECOND = 10_000
METRIC = {"Namespace": "AWS/SageMaker", "MetricName": "ApproximateBacklogSizePerInstance", "Unit": "Count"}
TRACKING = TrackingPolicy(name="tracking", target=5.0)
STEP = StepPolicy(
    name="step", adjustment_type="ChangeInCapacity", steps=(Step(lower=0.0, upper=None, adjustment=1),), cooldown_s=60.0
)
SHAPES: dict[str, dict[str, Any]] = {
    "high": {"EvaluationPeriods": 3, "Threshold": 5.0, "ComparisonOperator": "GreaterThanThreshold"},
    "low": {"EvaluationPeriods": 15, "Threshold": 4.5, "ComparisonOperator": "LessThanThreshold"},
    "step": {"EvaluationPeriods": 1, "Threshold": 1.0, "ComparisonOperator": "GreaterThanOrEqualToThreshold"},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoints", type=int, default=3334, help="endpoints with three alarms each")
    parser.add_argument("--rounds", type=int, default=5, help="looks at all of them, of which the median counts")


def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        results = asyncio.run(_measure(Path(directory), options.endpoints, options.rounds))
    print("| alarms | values read, a second | judged | decided | all three | the evaluator's pass |")
    print("|---|---|---|---|---|---|")
    names = ("read", "judged", "decided", "all", "pass")
    print(f"| {results['alarms']:,} | {' | '.join(f'{results[name]:,.0f}' for name in names)} |")
    print(f"one core looks at {results['all']:,.0f} alarms a second; the bound is {MIN_ALARMS_A_SECOND:,}")
    return results


async def _measure(directory: Path, endpoints: int, rounds: int) -> dict[str, float]:
    world = AlarmWorld(directory)
    try:
        for number in range(endpoints):
            _publish(world, f"endpoint-{number}", random.Random(number))
        alarms = [_alarm(f"endpoint-{number}", shape) for number in range(endpoints) for shape in SHAPES]
        await world.store.put(alarms)
        print(f"made: {len(alarms)} alarms", file=sys.stderr, flush=True)
        looks = [_look(alarms, world.series) for _ in range(rounds)]
        passes = []
        for _ in range(rounds):
            world.now += 60
            started = time.process_time()
            await world.evaluator.tick(world.now)
            passes.append(time.process_time() - started)
    finally:
        world.database.close()
    rates = {name: len(alarms) / _median([look[name] for look in looks]) for name in ("read", "judged", "decided")}
    total = len(alarms) / _median([sum(look.values()) for look in looks])
    return {"alarms": len(alarms), **rates, "all": total, "pass": len(alarms) / _median(passes)}


def _publish(world: AlarmWorld, endpoint: str, draw: random.Random) -> None:
    dimensions = [{"Name": "EndpointName", "Value": endpoint}]
    load = draw.choice((0.0, 1.0, 4.0, 12.0))
    data = [
        METRIC | {"Dimensions": dimensions, "Timestamp": START - 60 * age, "Value": load * draw.uniform(0.5, 1.5)}
        for age in range(1, 60)
    ]
    world.series.record(METRIC["Namespace"], data, START)


def _alarm(endpoint: str, shape: str) -> Alarm:
    configuration = METRIC | SHAPES[shape] | {"AlarmName": f"{endpoint}-{shape}", "Period": 60, "Statistic": "Average"}
    configuration |= {"Dimensions": [{"Name": "EndpointName", "Value": endpoint}], "ActionsEnabled": True}
    configuration |= {"AlarmActions": [POLICY], "OKActions": [], "InsufficientDataActions": []}
    return new_alarm(f"arn:{endpoint}-{shape}", configuration, START)


def _look(alarms: Sequence[Alarm], series: Series) -> dict[str, float]:
    """Return the seconds that one look at all alarms takes, for each of its parts."""
    index = series.index(START)
    started = time.process_time()
    found = [
        (alarm, periods, values_of(alarm, periods)) for alarm in alarms for periods in [read(alarm, series, index)]
    ]
    was_read = time.process_time()
    states = [state_of(alarm, periods, values) for alarm, periods, values in found]
    was_judged = time.process_time()
    for first in range(0, len(alarms), len(SHAPES)):
        triggers = [
            _trigger(alarm, values)
            for (alarm, _, values), state in zip(found[first : first + 3], states[first : first + 3], strict=True)
            if state == "ALARM"
        ]
        target = Target(min_capacity=0, max_capacity=10, desired=2, running=2, policies=(TRACKING, STEP))
        decide(target, triggers, {}, START)
    return {
        "read": was_read - started,
        "judged": was_judged - was_read,
        "decided": time.process_time() - was_judged,
    }


def _trigger(alarm: Alarm, values: Sequence[float | None]) -> Trigger:
    real = [value for value in values if value is not None][-alarm.rule.periods :]
    return Trigger(
        policy=STEP if alarm.name.endswith("step") else TRACKING,
        alarm=alarm.name,
        values=tuple(real),
        threshold=alarm.rule.threshold,
        is_above=alarm.rule.comparison.startswith("Greater"),
    )


def _median(seconds: Sequence[float]) -> float:
    return sorted(seconds)[len(seconds) // 2]
