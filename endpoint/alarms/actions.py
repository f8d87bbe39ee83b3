"""The scaling policies among alarms' actions: run through a port, with what became of it in the alarms' history."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite

from endpoint.alarms.alarm import Alarm, HistoryItem
from endpoint.alarms.firing import Act, Firing, FiringResult
from endpoint.alarms.history import acted
from endpoint.alarms.notices import is_topic
from endpoint.alarms.store import AlarmStore

NO_VALUES = "The alarm's state reason data has no recent datapoints that the policy could scale by"

_MAX_QUERY_AGE_S = 10.0
"""Wall-clock seconds for which datapoints that a user gives are recent."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """A firing, and the state that it is for."""

    firing: Firing
    state_at: float
    """Time at which the alarm got into ALARM, in seconds since the epoch."""
    is_first: bool
    """Whether the alarm got there just now."""


def invocations(alarm: Alarm, values: Sequence[float], now: float, *, is_first: bool) -> list[Invocation]:
    """Return what an alarm that is in ALARM invokes; nothing if its actions are disabled."""
    return [
        Invocation(
            firing=Firing(
                action=action,
                alarm=alarm.name,
                values=tuple(values),
                threshold=float(alarm.rule.threshold),
                is_above=alarm.rule.comparison.startswith("Greater"),
                at=now,
            ),
            state_at=alarm.transitioned_at,
            is_first=is_first,
        )
        for action in alarm.actions("ALARM")
        if not is_topic(action)
    ]


def recent_values(reason_data: str | None, now: float) -> list[float]:
    """Return the recent datapoints in a user's StateReasonData; none if they are older than ten seconds."""
    try:
        data = json.loads(reason_data or "{}")
        queried_at = datetime.strptime(data["queryDate"], "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
        values = [float(value) for value in data["recentDatapoints"] if value is not None]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return []
    return values if all(map(isfinite, values)) and abs(now - queried_at) <= _MAX_QUERY_AGE_S else []


class Actions:
    """Runs policies. There is one of it per store."""

    def __init__(self, store: AlarmStore, act: Act) -> None:
        self._store = store
        self._act = act
        self._errors: dict[tuple[str, str], str | None] = {}
        """Last outcome of an alarm's action: it is in the history once, however often the action is repeated."""

    async def run(self, invoked: Sequence[Invocation]) -> None:
        """Run all policies of one evaluation at once. Never raises for what happens there."""
        able = [each.firing for each in invoked if each.firing.values]
        results: list[FiringResult]
        try:
            results = list(await self._act(able)) if able else []
        except Exception as exception:
            _LOG.exception("The scaling policies of %d alarms failed", len(able))
            results = [FiringResult(error=f"{type(exception).__name__}: {exception}") for _ in able]
        left = iter(results)
        items: list[HistoryItem] = []
        for each in invoked:
            firing = each.firing
            error = next(left).error if firing.values else NO_VALUES
            key = firing.alarm, firing.action
            if each.is_first or key not in self._errors or self._errors[key] != error:
                items.append(acted(firing.alarm, firing.action, at=firing.at, state_at=each.state_at, error=error))
            self._errors[key] = error
        if items:
            await self._store.add_history(items)

    def forget(self, alarms: Sequence[str]) -> None:
        """Forget what became of the actions of alarms that are deleted."""
        gone = frozenset(alarms)
        self._errors = {key: error for key, error in self._errors.items() if key[0] not in gone}
