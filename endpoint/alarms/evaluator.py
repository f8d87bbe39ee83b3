"""The clock of the alarms: looks at all of them in one pass, writes what changed, and runs what that invokes.

Alarms with a period of a minute or more are evaluated every minute of the platform's clock, those with a shorter one
every ten seconds, and those whose periods make more than a day every hour. A transition, its history and the notices of
it are one transaction. Policies come after it: a gateway that is killed in between runs them when it looks again, as an
alarm that stays in ALARM does every minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from endpoint.alarms.actions import Actions, Invocation, invocations
from endpoint.alarms.alarm import Alarm, HistoryItem
from endpoint.alarms.evaluation import is_warming_up, kept_buckets, points_of, read, state_of, values_of
from endpoint.alarms.history import transitioned
from endpoint.alarms.notices import Notice, notices
from endpoint.alarms.reasons import explain, recent
from endpoint.alarms.series import KEPT_BUCKETS, MINUTE, Metric, Series
from endpoint.alarms.store import AlarmStore
from endpoint.settings import Settings

_DAY_S = 86400
_HOUR_MINUTES = 60
_MIN_PAUSE_S = 0.02
"""Wall-clock seconds between two looks, however quick the platform's clock."""
_AT_ONCE = 200
"""Alarms between two of which other work gets its turn."""

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pass:
    """Changes, notices and invocations that one pass over the alarms leads to."""

    changed: list[Alarm] = field(default_factory=list)
    history: list[HistoryItem] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    invoked: list[Invocation] = field(default_factory=list)
    acting: list[str] = field(default_factory=list)
    """Alarms whose policies run."""


class Evaluator:
    """There is one of it per store and series."""

    def __init__(
        self,
        settings: Settings,
        store: AlarmStore,
        series: Series,
        actions: Actions,
        wake_sender: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Call `wake_sender` when the store has a new notice."""
        self._settings = settings
        self._store = store
        self._series = series
        self._actions = actions
        self._wake_sender = wake_sender
        self._clock = clock
        self._watched: Mapping[str, Alarm] | None = None
        self._minute: int | None = None
        """Minute of the last evaluation of ordinary alarms."""
        self._long: set[str] = set()
        """Alarms over more than a day that have been evaluated."""
        self._acted: dict[str, int] = {}
        """Bucket in which the policies of an alarm ran last."""

    async def run(self) -> None:
        """Evaluate, until cancelled. Never raises."""
        while True:
            try:
                await self.restore(self._clock())
                break
            except Exception:
                _LOG.exception("The values that alarms look at could not be read")
                await asyncio.sleep(self._settings.real_s(60))
        try:
            await self._follow_clock()
        finally:
            await self._write_points()

    async def _follow_clock(self) -> None:
        while True:
            now = self._clock()
            at = self._series.time(max(self._series.index(now) + 1, self._series.index(now + _MIN_PAUSE_S)))
            # A clock that is set back meanwhile leaves more than there was: it has another bucket to wait for.
            while 0 < (left_s := at - self._clock()) <= at - now:
                await asyncio.sleep(left_s)
            try:
                # What is being written when this is cancelled is written to its end.
                await asyncio.shield(asyncio.create_task(self.tick(self._clock())))
            except Exception:
                _LOG.exception("The alarms could not be evaluated")

    async def restore(self, now: float) -> None:
        """Take the values that an earlier gateway wrote."""
        async with self._store.lock:
            self._watch(await self._store.all())
            self._series.restore(await self._store.points(), now)

    async def tick(self, now: float) -> None:
        """Evaluate the alarms that are due, and run what that invokes."""
        index = self._series.index(now)
        minute = index // MINUTE
        is_first, is_minute = self._minute is None, minute != self._minute
        async with self._store.lock:
            alarms = await self._store.all()
            self._watch(alarms)
            if is_minute:
                self._series.trim(now)
            await self._write_points()
            done = _Pass()
            for number, alarm in enumerate(alarms.values(), 1):
                if self._is_due(alarm, is_minute, minute):
                    try:
                        self._evaluate(alarm, index, now, done)
                    except Exception:  # the other alarms are evaluated all the same
                        _LOG.exception("Alarm %s could not be evaluated", alarm.name)
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            if done.changed:
                await self._store.put(done.changed, done.history, done.notices)
        # Only now: if that could not be written, the next look finds all of it again.
        self._minute = minute
        self._acted |= dict.fromkeys(done.acting, index)
        if done.notices:
            self._wake_sender()
        if done.invoked:
            await self._actions.run(done.invoked)
        if is_first or (is_minute and minute % _HOUR_MINUTES == 0):
            await self._store.prune(now)

    async def _write_points(self) -> None:
        changed, dropped = self._series.take_changes()
        if changed or dropped:
            await self._store.put_points(changed, dropped)

    def _watch(self, alarms: Mapping[str, Alarm]) -> None:
        """Tell the series what to keep, if alarms have changed."""
        if alarms is self._watched:
            return
        kept: dict[Metric, int] = {}
        for alarm in alarms.values():
            kept[alarm.metric] = max(kept.get(alarm.metric, KEPT_BUCKETS), kept_buckets(alarm))
        self._series.watch(kept)
        self._watched = alarms
        self._long &= alarms.keys()
        self._acted = {name: index for name, index in self._acted.items() if name in alarms}

    def _is_due(self, alarm: Alarm, is_minute: bool, minute: int) -> bool:
        if alarm.period_s < 60:
            return True
        if not is_minute or alarm.period_s * alarm.rule.periods <= _DAY_S:
            return is_minute
        is_due = alarm.name not in self._long or minute % _HOUR_MINUTES == 0
        self._long.add(alarm.name)
        return is_due

    def _evaluate(self, alarm: Alarm, index: int, now: float, done: _Pass) -> None:
        periods = read(alarm, self._series, index)
        values = values_of(alarm, periods)
        if is_warming_up(alarm, values, now, self._settings.real_s(60)):
            return
        state = state_of(alarm, periods, values)
        if state == alarm.state and state != "ALARM":
            return
        points = points_of(alarm, self._series, periods, values, index)
        is_new = state != alarm.state
        if is_new:
            reason, reason_data = explain(alarm, state, points, now)
            new = replace(
                alarm, state=state, reason=reason, reason_data=reason_data, updated_at=now, transitioned_at=now
            )
            done.changed.append(new)
            done.history.append(transitioned(alarm, new))
            done.notices += notices(alarm, new, self._settings.region, self._settings.account)
            alarm = new
        acted = self._acted.get(alarm.name)
        if state == "ALARM" and (is_new or acted is None or not acted <= index < acted + MINUTE):  # or was set back
            considered = [point.value for point in recent(points, alarm.rule.periods) if point.value is not None]
            done.invoked += invocations(alarm, considered, now, is_first=is_new)
            done.acting.append(alarm.name)
