"""Alarms with a clock that stands still until it is told, and scaling policies that only write down their calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from endpoint.alarms.actions import Actions
from endpoint.alarms.alarm import Alarm
from endpoint.alarms.alarms import Alarms
from endpoint.alarms.evaluator import Evaluator
from endpoint.alarms.firing import Firing, FiringResult
from endpoint.alarms.notice_sender import NoticeSender
from endpoint.alarms.series import Series
from endpoint.alarms.store import SCHEMA, AlarmStore
from endpoint.backend.clients import Clients
from endpoint.settings import Settings
from endpoint.state.database import Database

REGION, ACCOUNT = "eu-west-1", "111122223333"
START = 1_789_364_400.0
"""A whole minute."""
POLICY = f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:scalingPolicy:u:resource/sagemaker/endpoint/e/variant/v:policyName/p"
TOPIC = f"arn:aws:sns:{REGION}:{ACCOUNT}:topic"


def parameters(name: str = "a", **others: Any) -> dict[str, Any]:
    """Return PutMetricAlarm's parameters of an alarm above 5 in 3 of 3 minutes; None takes one away."""
    given = {
        "AlarmName": name,
        "Namespace": "N",
        "MetricName": "m",
        "Statistic": "Average",
        "Period": 60,
        "EvaluationPeriods": 3,
        "Threshold": 5.0,
        "ComparisonOperator": "GreaterThanThreshold",
    }
    return {key: value for key, value in (given | others).items() if value is not None}


class AlarmWorld:
    """All parts of one data directory's alarms; another one on the same directory is the next gateway."""

    def __init__(
        self,
        directory: Path,
        *,
        time_scale: float = 1.0,
        now: float = START,
        clock: Callable[[], float] | None = None,
        backend: Clients | None = None,
    ) -> None:
        settings = Settings(data_dir=directory, region=REGION, account=ACCOUNT, time_scale=time_scale)
        self.now = now
        self.fired: list[Sequence[Firing]] = []
        """Firings of each call of the policies."""
        self.error: str | None = None
        """Error that the policies answer."""
        self.exception: Exception | None = None
        """Exception that they raise."""
        self.has_fired: asyncio.Queue[None] = asyncio.Queue()
        """One item for each call of the policies."""
        self.database = Database(directory / "db", SCHEMA)
        self.store = AlarmStore(self.database)
        self.series = Series(settings)
        self._clock = clock or (lambda: self.now)
        actions = Actions(self.store, self._act)
        self.sender = NoticeSender(self.store, backend or _NoBackend(), self.clock)
        wake = self.sender.wake
        self.alarms = Alarms(settings, self.store, actions, wake, self.clock)
        self.evaluator = Evaluator(settings, self.store, self.series, actions, wake, self.clock)

    def clock(self) -> float:
        return self._clock()

    async def call(self, operation: str, **given: Any) -> dict[str, Any]:
        return await self.alarms.call(operation, given)

    async def put(self, name: str = "a", **others: Any) -> None:
        await self.call("PutMetricAlarm", **parameters(name, **others))

    def publish(self, *values: float, step_s: float = 60.0, **datum: Any) -> None:
        """Publish values, the newest of them now and each of the others `step_s` before the next."""
        for age, value in enumerate(reversed(values)):
            one = {"MetricName": "m", "Value": value, "Timestamp": self.clock() - age * step_s}
            self.series.record("N", [one | datum], self.clock())

    async def minute(self, *values: float, minute_s: float = 60.0, **datum: Any) -> None:
        """Publish values at once, let a minute pass, and evaluate."""
        for value in values:
            self.publish(value, **datum)
        self.now += minute_s
        await self.evaluator.tick(self.now)

    async def alarm(self, name: str = "a") -> Alarm:
        return (await self.store.all())[name]

    async def state(self, name: str = "a") -> str:
        return (await self.alarm(name)).state

    async def history(self, item_type: str | None = None) -> list[str]:
        """The summaries of the whole history, the oldest first."""
        given: dict[str, Any] = {"ScanBy": "TimestampAscending", "EndDate": self.now + 1}
        items = await self.call(
            "DescribeAlarmHistory", **given, **({"HistoryItemType": item_type} if item_type else {})
        )
        return [item["HistorySummary"] for item in items["AlarmHistoryItems"]]

    async def notices(self) -> list[tuple[str, str]]:
        """The topics and subjects of what waits to be published."""
        rows = await self.database.read(lambda db: db.execute("SELECT * FROM alarm_notices ORDER BY seq").fetchall())
        return [(row["topic"], row["subject"]) for row in rows]

    async def _act(self, firings: Sequence[Firing]) -> Sequence[FiringResult]:
        self.has_fired.put_nowait(None)
        if self.exception is not None:
            raise self.exception
        self.fired.append(firings)
        return [FiringResult(error=self.error) for _ in firings]


class _NoBackend:
    def client(self, service: str) -> Any:
        raise AssertionError(f"nothing is to be asked of {service}")


def in_world(directory: Path, work: Callable[[AlarmWorld], Awaitable[Any]], **options: Any) -> Any:
    """Run `work` with a new world on `directory`."""

    async def run() -> Any:
        world = AlarmWorld(directory, **options)
        try:
            return await work(world)
        finally:
            world.database.close()

    return asyncio.run(run())
