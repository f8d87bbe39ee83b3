"""The alarms of one data directory: in memory for the evaluator, and in SQLite for the next gateway."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict

from endpoint.alarms.alarm import Alarm, HistoryItem
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
"""

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
        self._alarms: dict[str, Alarm] | None = None

    async def all(self) -> Mapping[str, Alarm]:
        """Return the alarms by their names. The mapping is the store's own and changes with it."""
        if self._alarms is None:
            rows = await self._database.read(lambda db: db.execute("SELECT * FROM alarms ORDER BY name").fetchall())
            alarms = {row["name"]: _alarm(row) for row in rows}
            if self._alarms is None:  # nobody was quicker
                self._alarms = alarms
        return self._alarms

    async def put(
        self,
        alarms: Sequence[Alarm],
        history: Iterable[HistoryItem] = (),
        tags: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Write alarms, new ones with their `tags` by their names, and what their history says, in one transaction."""
        known = dict(await self.all())

        def change(db: sqlite3.Connection) -> None:
            db.executemany(_PUT, [asdict(alarm) | {"configuration": _dump(alarm)} for alarm in alarms])
            for name, pairs in (tags or {}).items():
                put_tags(db, name, pairs)
            put_history(db, history)

        await self._database.write(change)
        known |= {alarm.name: alarm for alarm in alarms}
        self._alarms = known

    async def delete(self, names: Collection[str], history: Iterable[HistoryItem] = ()) -> None:
        """Delete alarms and their tags; their history stays."""
        known = dict(await self.all())

        def change(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM alarms WHERE name = ?", [(name,) for name in names])
            put_history(db, history)

        await self._database.write(change)
        self._alarms = {name: alarm for name, alarm in known.items() if name not in names}


def put_tags(db: sqlite3.Connection, alarm: str, tags: Mapping[str, str]) -> None:
    """Add tags within the transaction of `db`."""
    db.executemany("INSERT OR REPLACE INTO alarm_tags VALUES (?, ?, ?)", [(alarm, *tag) for tag in tags.items()])


def put_history(db: sqlite3.Connection, history: Iterable[HistoryItem]) -> None:
    """Add to the history within the transaction of `db`."""
    db.executemany(
        "INSERT INTO alarm_history (alarm, at, type, summary, data) VALUES (:alarm, :at, :type, :summary, :data)",
        [asdict(item) for item in history],
    )


def _dump(alarm: Alarm) -> str:
    return json.dumps(alarm.configuration)


def _alarm(row: sqlite3.Row) -> Alarm:
    return Alarm(**dict(row) | {"configuration": json.loads(row["configuration"])})
