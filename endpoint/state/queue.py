"""The durable queue of accepted invocations: first in, first out per endpoint, leased with a fence, decided once.

A job's way: waiting → leased → decided → done. Leased ones go back to their place if the gateway dies (`recover`). The
end of a job is decided in one transaction, before anything of it is written to S3: a gateway that is killed in between
writes the same object again, and never both an output and a failure. The notification of a job enters the outbox in the
transaction that ends it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from endpoint.state import outbox
from endpoint.state.database import Database
from endpoint.state.outbox import Notification, put_notifications

T = TypeVar("T")

_MAX_LEASED_AT_ONCE = 100
_RETRY_INTERVAL_S = 1.0

_LOG = logging.getLogger(__name__)

SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL, endpoint TEXT NOT NULL, variant TEXT NOT NULL, inference_id TEXT NOT NULL,
    input_location TEXT, body BLOB,
    content_type TEXT, accept TEXT, custom_attributes TEXT, timeout_s REAL NOT NULL,
    accepted_at REAL NOT NULL, expires_at REAL NOT NULL,
    output_location TEXT NOT NULL, failure_location TEXT, output_config TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',   -- waiting, leased, decided, done
    fence INTEGER NOT NULL DEFAULT 0,        -- grows with each lease
    leased_at REAL, outcome TEXT, finished_at REAL
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, endpoint, seq);
CREATE INDEX IF NOT EXISTS jobs_expiring ON jobs (expires_at) WHERE state = 'waiting';
"""
    + outbox.SCHEMA
)

OutcomeKind = Literal[
    "completed",
    "client_error",  # the container said 4xx
    "server_error",  # the container said 5xx
    "timeout",
    "no_answer",  # the container died or hung up
    "bad_answer",  # chunked, or with too long headers
    "input",  # can't be read
    "expired",  # waited longer than its TTL
    "deleted",  # waited when its endpoint was deleted
    "upload",  # the output can't be written
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """An invocation that is to be accepted. Times are seconds since the epoch."""

    id: str
    """The UUID that names the output; the inference ID is another."""
    endpoint: str
    variant: str
    inference_id: str
    input_location: str | None
    body: bytes | None
    content_type: str | None
    accept: str | None
    custom_attributes: str | None
    timeout_s: float
    accepted_at: float = field(default_factory=time.time)
    expires_at: float
    output_location: str
    failure_location: str | None
    output_config: str
    """The endpoint's OutputConfig as JSON, as it was then: the endpoint may be another, or gone, by the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(NewJob):
    seq: int
    fence: int
    """Number of leases until now: of several holders, only the last may decide and finish the job."""
    leased_at: float | None

    @property
    def output_options(self) -> dict[str, Any]:
        """The decoded OutputConfig."""
        options: dict[str, Any] = json.loads(self.output_config)
        return options


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a job, and the object that tells it: a spooled file, or a text."""

    kind: OutcomeKind
    reason: str | None = None
    """The failureReason of the notification."""
    content_type: str | None = None
    file: str | None = None
    """The file's name below data_dir/answers."""
    text: str | None = None

    @property
    def succeeded(self) -> bool:
        return self.kind == "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    waiting: int
    in_flight: int
    oldest_at: float | None
    """Time when the oldest job that isn't done was accepted."""

    @property
    def size(self) -> int:
        return self.waiting + self.in_flight


_NEW_COLUMNS = [column.name for column in fields(NewJob)]
_INSERT = f"INSERT INTO jobs ({', '.join(_NEW_COLUMNS)}) VALUES ({', '.join(f':{name}' for name in _NEW_COLUMNS)})"
_COLUMNS = ", ".join(column.name for column in fields(Job))
_COLUMNS_WITHOUT_BODY = _COLUMNS.replace(", body,", ", NULL AS body,")
_RELEASE = (
    "UPDATE jobs SET state = 'waiting', expires_at = expires_at + max(0, :now - leased_at), leased_at = NULL"
    " WHERE state = 'leased'"
)
# One look at the index for each endpoint, however much waits: SQLite has no other way to skip.
_WAITING_ENDPOINTS = """
WITH RECURSIVE found (endpoint) AS (
    SELECT min(endpoint) FROM jobs WHERE state = 'waiting'
    UNION ALL
    SELECT (SELECT min(endpoint) FROM jobs WHERE state = 'waiting' AND endpoint > found.endpoint)
    FROM found WHERE found.endpoint IS NOT NULL
)
SELECT endpoint FROM found WHERE endpoint IS NOT NULL
"""


class Queue:
    """Owns the table of jobs. What ends or releases a lease is retried for as long as the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def accept(self, new: NewJob) -> Job:
        """Put a job at the end of its endpoint's queue; it is on the disk when this returns."""
        values = asdict(new)
        seq = await self._database.write(lambda db: db.execute(_INSERT, values).lastrowid)
        return Job(seq=seq or 0, fence=0, leased_at=None, **values)

    async def lease(self, endpoint: str) -> Job | None:
        """Lease the first job that waits and hasn't expired."""
        chosen = "WHERE state = 'waiting' AND endpoint = ? AND expires_at > ? ORDER BY seq LIMIT 1"
        jobs = await self._lease(_COLUMNS, chosen, endpoint, time.time())
        return jobs[0] if jobs else None

    async def lease_expired(self) -> list[Job]:
        """Lease up to 100 jobs whose time to wait is over, without their bodies."""
        chosen = (
            "INDEXED BY jobs_expiring WHERE state = 'waiting' AND expires_at <= ?"
            f" ORDER BY expires_at LIMIT {_MAX_LEASED_AT_ONCE}"
        )
        return await self._lease(_COLUMNS_WITHOUT_BODY, chosen, time.time())

    async def lease_all(self, endpoint: str) -> list[Job]:
        """Lease up to 100 jobs of a deleted endpoint, without their bodies."""
        chosen = f"WHERE state = 'waiting' AND endpoint = ? ORDER BY seq LIMIT {_MAX_LEASED_AT_ONCE}"
        return await self._lease(_COLUMNS_WITHOUT_BODY, chosen, endpoint)

    async def _lease(self, columns: str, chosen: str, *values: object) -> list[Job]:
        rows = await self._database.write(
            lambda db: db.execute(
                "UPDATE jobs SET state = 'leased', fence = fence + 1, leased_at = ?"
                f" WHERE seq IN (SELECT seq FROM jobs {chosen}) RETURNING {columns}",
                (time.time(), *values),
            ).fetchall()
        )
        return [Job(**dict(row)) for row in rows]

    async def release(self, job: Job) -> None:
        """Put a leased job back to its place. The time that it was held doesn't count as waiting."""
        values = {"now": time.time(), "seq": job.seq, "fence": job.fence}
        await self._persist(lambda db: db.execute(f"{_RELEASE} AND seq = :seq AND fence = :fence", values))

    async def decide(self, job: Job, outcome: Outcome) -> bool:
        """Write down the end of a job; return False if another holds it now. `outcome.file` must be on the disk."""
        text = json.dumps(asdict(outcome))
        changed = await self._persist(
            lambda db: (
                db.execute(
                    "UPDATE jobs SET state = 'decided', outcome = ?, body = NULL"
                    " WHERE seq = ? AND fence = ? AND state = 'leased'",
                    (text, job.seq, job.fence),
                ).rowcount
            )
        )
        return bool(changed)

    async def redecide(self, job: Job, outcome: Outcome) -> None:
        """Replace the outcome of a decided job whose output can't be written: nothing of it is in S3 yet."""
        text = json.dumps(asdict(outcome))
        await self._persist(
            lambda db: db.execute(
                "UPDATE jobs SET outcome = ? WHERE seq = ? AND fence = ? AND state = 'decided'",
                (text, job.seq, job.fence),
            )
        )

    async def finish(self, job: Job, notification: Notification | None) -> None:
        """End a job whose object is in S3, and put its notification into the outbox, in one transaction."""

        def change(db: sqlite3.Connection) -> None:
            done = db.execute(
                "UPDATE jobs SET state = 'done', finished_at = ?, body = NULL"
                " WHERE seq = ? AND fence = ? AND state = 'decided'",
                (time.time(), job.seq, job.fence),
            ).rowcount
            if done and notification is not None:
                put_notifications(db, [notification])

        await self._persist(change)

    async def _persist(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Write, and retry while the database fails: a full disk, say, ends no request."""
        while True:
            try:
                return await self._database.write(change)
            except sqlite3.Error as error:
                _LOG.error("The database does not answer; next attempt in %g s: %s", _RETRY_INTERVAL_S, error)
                await asyncio.sleep(_RETRY_INTERVAL_S)

    async def next_expiry(self) -> float | None:
        """Return the time when the next waiting job expires."""
        expires_at: float | None = await self._database.read(
            lambda db: db.execute(
                "SELECT min(expires_at) FROM jobs INDEXED BY jobs_expiring WHERE state = 'waiting'"
            ).fetchone()[0]
        )
        return expires_at

    async def recover(self) -> list[tuple[Job, Outcome]]:
        """Release what an earlier gateway held; return what it had decided and not finished, to be delivered."""

        def change(db: sqlite3.Connection) -> list[sqlite3.Row]:
            db.execute(_RELEASE, {"now": time.time()})
            return db.execute(f"SELECT {_COLUMNS}, outcome FROM jobs WHERE state = 'decided' ORDER BY seq").fetchall()

        decided = []
        for row in await self._database.write(change):
            values = dict(row)
            outcome = Outcome(**json.loads(values.pop("outcome")))
            decided.append((Job(**values), outcome))
        return decided

    async def backlog(self, endpoint: str) -> Backlog:
        rows = await self._database.read(
            lambda db: db.execute(
                "SELECT state, count(*) AS count, min(accepted_at) AS oldest FROM jobs"
                " WHERE state IN ('waiting', 'leased', 'decided') AND endpoint = ? GROUP BY state",
                (endpoint,),
            ).fetchall()
        )
        counts = {row["state"]: row["count"] for row in rows}
        waiting = counts.pop("waiting", 0)
        oldest_at = min((row["oldest"] for row in rows), default=None)
        return Backlog(waiting=waiting, in_flight=sum(counts.values()), oldest_at=oldest_at)

    async def waiting_endpoints(self) -> set[str]:
        """Return the names of the endpoints that jobs wait for, deleted ones included."""
        rows = await self._database.read(lambda db: db.execute(_WAITING_ENDPOINTS).fetchall())
        return {row["endpoint"] for row in rows}

    async def prune(self, older_than_s: float) -> None:
        """Forget jobs that have been done for longer than `older_than_s`."""
        limit = time.time() - older_than_s
        await self._database.write(
            lambda db: db.execute("DELETE FROM jobs WHERE state = 'done' AND finished_at < ?", (limit,))
        )
