"""The notifications that are still to be published, in the order in which they came for each topic."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass

from endpoint.state.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    endpoint TEXT NOT NULL, variant TEXT NOT NULL, topic TEXT NOT NULL, message TEXT NOT NULL,
    since REAL NOT NULL
);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    endpoint: str
    variant: str
    topic: str
    message: str


def put_notifications(db: sqlite3.Connection, notifications: Iterable[Notification]) -> None:
    """Add to the outbox within the transaction of `db`."""
    db.executemany(
        "INSERT INTO outbox (endpoint, variant, topic, message, since) VALUES (?, ?, ?, ?, ?)",
        [(each.endpoint, each.variant, each.topic, each.message, time.time()) for each in notifications],
    )


class Outbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, notifications: Iterable[Notification]) -> None:
        await self._database.write(lambda db: put_notifications(db, notifications))

    async def topics(self) -> list[str]:
        """Return the topics that notifications wait for."""
        rows = await self._database.read(lambda db: db.execute("SELECT DISTINCT topic FROM outbox").fetchall())
        return [row["topic"] for row in rows]

    async def first(self, topic: str) -> tuple[int, Notification] | None:
        """Return the oldest notification for `topic` and its number, or None."""
        row = await self._database.read(
            lambda db: db.execute("SELECT * FROM outbox WHERE topic = ? ORDER BY seq LIMIT 1", (topic,)).fetchone()
        )
        if row is None:
            return None
        columns = {name: row[name] for name in ("endpoint", "variant", "topic", "message")}
        return row["seq"], Notification(**columns)

    async def remove(self, seq: int) -> None:
        await self._database.write(lambda db: db.execute("DELETE FROM outbox WHERE seq = ?", (seq,)))
