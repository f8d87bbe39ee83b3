"""The alarms of one data directory: in memory for the evaluator, and in SQLite for the next gateway."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict

from endpoint.alarms.alarm import Alarm, HistoryItem
from endpoint.alarms.notices import Notice
from endpoint.alarms.series import Row
from endpoint.state.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS alarms (
    name TEXT PRIMARY KEY, arn TEXT NOT NULL,
    configuration TEXT NOT NULL,    -- JSON: see Configuration
    configured_at REAL NOT NULL, created_at REAL NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL, reason_data TEXT,
    updated_at REAL NOT NULL, transitioned_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS alarm_tags (
    alarm TEXT NOT NULL REFERENCES alarms (name) ON DELETE CASCADE,
    key TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (alarm, key)
);
CREATE TABLE IF NOT EXISTS alarm_history (  -- outlives its alarm
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    alarm TEXT NOT NULL, at REAL NOT NULL, type TEXT NOT NULL, summary TEXT NOT NULL, data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS alarm_history_by_time ON alarm_history (at);
CREATE INDEX IF NOT EXISTS alarm_history_by_alarm ON alarm_history (alarm, at);
CREATE TABLE IF NOT EXISTS alarm_notices (  -- that SNS hasn't taken yet
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    alarm TEXT NOT NULL, topic TEXT NOT NULL, subject TEXT NOT NULL, message TEXT NOT NULL, at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS alarm_points (  -- of metrics that have alarms
    metric TEXT NOT NULL, unit TEXT NOT NULL,
    at REAL NOT NULL,               -- the middle of a bucket
    samples TEXT NOT NULL,
    PRIMARY KEY (metric, unit, at)
) WITHOUT ROWID;
"""

HISTORY_S = 30 * 86400.0
"""Wall-clock seconds that history is kept."""

_PUT = """
INSERT INTO alarms VALUES (:name, :arn, :configuration, :configured_at, :created_at, :state, :reason, :reason_data,
    :updated_at, :transitioned_at)
ON CONFLICT (name) DO UPDATE SET configuration = excluded.configuration, configured_at = excluded.configured_at,
    state = excluded.state, reason = excluded.reason, reason_data = excluded.reason_data,
    updated_at = excluded.updated_at, transitioned_at = excluded.transitioned_at
"""


class AlarmStore:
    """Owns the tables, and a copy of the alarms in memory. What reads an alarm and changes it holds `lock`."""

    def __init__(self, database: Database) -> None:
        self.lock = asyncio.Lock()
        self._database = database
        self._alarms: Mapping[str, Alarm] | None = None

    async def all(self) -> Mapping[str, Alarm]:
        """Return the alarms by their names, as they are now: another mapping once one has changed."""
        if self._alarms is None:
            rows = await self._database.read(lambda db: db.execute("SELECT * FROM alarms ORDER BY name").fetchall())
            if self._alarms is None:  # nobody was quicker
                self._alarms = {row["name"]: _alarm(row) for row in rows}
        return self._alarms

    async def put(
        self,
        alarms: Sequence[Alarm],
        history: Iterable[HistoryItem] = (),
        notices: Iterable[Notice] = (),
        tags: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Write alarms, what their history says, what is to be published, and tags by alarm, in one transaction."""
        known = dict(await self.all())

        def change(db: sqlite3.Connection) -> None:
            db.executemany(_PUT, [_row(alarm) for alarm in alarms])
            for name, pairs in (tags or {}).items():
                _put_tags(db, name, pairs)
            _put_history(db, history)
            db.executemany(
                "INSERT INTO alarm_notices (alarm, topic, subject, message, at)"
                " VALUES (:alarm, :topic, :subject, :message, :at)",
                [asdict(notice) for notice in notices],
            )

        await self._database.write(change)
        self._alarms = known | {alarm.name: alarm for alarm in alarms}

    async def delete(self, names: Collection[str], history: Iterable[HistoryItem] = ()) -> None:
        """Delete alarms and their tags; their history stays."""
        known = await self.all()

        def change(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM alarms WHERE name = ?", [(name,) for name in names])
            _put_history(db, history)

        await self._database.write(change)
        self._alarms = {name: alarm for name, alarm in known.items() if name not in names}

    # Tags

    async def tags(self, alarm: str) -> dict[str, str]:
        rows = await self._database.read(
            lambda db: db.execute("SELECT key, value FROM alarm_tags WHERE alarm = ? ORDER BY key", (alarm,)).fetchall()
        )
        return {row["key"]: row["value"] for row in rows}

    async def put_tags(self, alarm: str, tags: Mapping[str, str]) -> None:
        await self._database.write(lambda db: _put_tags(db, alarm, tags))

    async def remove_tags(self, alarm: str, keys: Iterable[str]) -> None:
        await self._database.write(
            lambda db: db.executemany(
                "DELETE FROM alarm_tags WHERE alarm = ? AND key = ?", [(alarm, key) for key in keys]
            )
        )

    # History

    async def add_history(self, history: Iterable[HistoryItem]) -> None:
        await self._database.write(lambda db: _put_history(db, history))

    async def history(
        self,
        *,
        alarm: str | None,
        item_type: str | None,
        since: float,
        until: float,
        descends: bool,
        after: tuple[float, int] | None,
        limit: int,
    ) -> list[tuple[int, HistoryItem]]:
        """Return items of the time from `since` to `until` with their numbers, in the order of time.

        `after` has the time and the number of the item that the first comes after.
        """
        conditions: list[str] = ["at BETWEEN ? AND ?"]
        values: list[object] = [since, until]
        order, beyond = ("DESC", "<") if descends else ("ASC", ">")
        for condition, value in {"alarm = ?": alarm, "type = ?": item_type}.items():
            if value is not None:
                conditions.append(condition)
                values.append(value)
        if after is not None:
            conditions.append(f"(at, seq) {beyond} (?, ?)")
            values += after
        where = " AND ".join(conditions)
        query = f"SELECT * FROM alarm_history WHERE {where} ORDER BY at {order}, seq {order} LIMIT {limit}"
        rows = await self._database.read(lambda db: db.execute(query, values).fetchall())
        return [(row["seq"], HistoryItem(**{name: row[name] for name in set(row.keys()) - {"seq"}})) for row in rows]

    async def prune(self, now: float) -> None:
        """Forget history that is too old."""
        await self._database.write(lambda db: db.execute("DELETE FROM alarm_history WHERE at < ?", (now - HISTORY_S,)))

    # Notices

    async def first_notice(self) -> tuple[int, Notice] | None:
        """Return the oldest notice and its number, or None."""
        row = await self._database.read(
            lambda db: db.execute("SELECT * FROM alarm_notices ORDER BY seq LIMIT 1").fetchone()
        )
        if row is None:
            return None
        return row["seq"], Notice(**{name: row[name] for name in set(row.keys()) - {"seq"}})

    async def end_notice(self, seq: int, item: HistoryItem) -> None:
        """Remove a notice, and write into its alarm's history what became of it."""

        def change(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM alarm_notices WHERE seq = ?", (seq,))
            _put_history(db, [item])

        await self._database.write(change)

    # Points

    async def points(self) -> list[Row]:
        rows = await self._database.read(lambda db: db.execute("SELECT * FROM alarm_points").fetchall())
        return [(row["metric"], row["unit"], row["at"], row["samples"]) for row in rows]

    async def put_points(self, changed: Sequence[Row], dropped: Sequence[Row]) -> None:
        def change(db: sqlite3.Connection) -> None:
            db.executemany(
                "DELETE FROM alarm_points WHERE metric = ? AND unit = ? AND at = ?", [row[:3] for row in dropped]
            )
            db.executemany("INSERT OR REPLACE INTO alarm_points VALUES (?, ?, ?, ?)", changed)

        await self._database.write(change)


def _put_tags(db: sqlite3.Connection, alarm: str, tags: Mapping[str, str]) -> None:
    db.executemany("INSERT OR REPLACE INTO alarm_tags VALUES (?, ?, ?)", [(alarm, *tag) for tag in tags.items()])


def _put_history(db: sqlite3.Connection, history: Iterable[HistoryItem]) -> None:
    db.executemany(
        "INSERT INTO alarm_history (alarm, at, type, summary, data) VALUES (:alarm, :at, :type, :summary, :data)",
        [asdict(item) for item in history],
    )


def _row(alarm: Alarm) -> dict[str, object]:
    return asdict(alarm) | {"configuration": json.dumps(alarm.configuration)}


def _alarm(row: sqlite3.Row) -> Alarm:
    return Alarm(**dict(row) | {"configuration": json.loads(row["configuration"])})
