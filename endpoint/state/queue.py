"""The durable queue of accepted invocations: first in, first out per endpoint, leased with a fence, decided once.

A job's way: waiting → leased → decided → done. Leased ones go back to their place if the gateway dies (`recover`). What
became of a job is decided in one transaction, before anything of it is written to S3: a gateway that is killed in
between writes the same object again, and never both an output and a failure. The notice of a job enters the outbox in
the transaction that ends it.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from endpoint.state.database import Database

SCHEMA = """
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
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    endpoint TEXT NOT NULL, variant TEXT NOT NULL, topic TEXT NOT NULL, message TEXT NOT NULL,
    since REAL NOT NULL
);
"""

Kind = Literal[
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
class Job:
    seq: int
    id: str
    """Names the output, not the inference id."""
    endpoint: str
    variant: str
    inference_id: str
    input_location: str | None
    body: bytes | None
    content_type: str | None
    accept: str | None
    custom_attributes: str | None
    timeout_s: float
    accepted_at: float
    """Seconds since the epoch, as all times here."""
    expires_at: float
    output_location: str
    failure_location: str | None
    output_config: str
    """JSON: the OutputConfig of the endpoint as it was then, as the endpoint may be another, or gone, by the end."""
    fence: int
    """How often it was leased: of more than one holder, only the last may decide and finish."""
    leased_at: float | None

    @property
    def config(self) -> dict[str, Any]:
        """An endpoint config, as far as the end of a job needs one."""
        return {"AsyncInferenceConfig": {"OutputConfig": json.loads(self.output_config)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job, and the object that says so: a file of the spool, or a text."""

    kind: Kind
    reason: str | None = None
    """The failureReason of its notice."""
    content_type: str | None = None
    file: str | None = None
    """Its name below data_dir/answers."""
    text: str | None = None

    @property
    def succeeded(self) -> bool:
        return self.kind == "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    topic: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    waiting: int
    in_flight: int
    oldest_at: float | None
    """When the oldest one that isn't done was accepted."""

    @property
    def size(self) -> int:
        return self.waiting + self.in_flight


_COLUMNS = ", ".join(field.name for field in fields(Job))
_BODILESS = _COLUMNS.replace(", body,", ", NULL AS body,")
# One look at the index for each endpoint, however much waits: SQLite has no other way to skip.
_AWAITED = """
WITH RECURSIVE found (endpoint) AS (
    SELECT min(endpoint) FROM jobs WHERE state = 'waiting'
    UNION ALL
    SELECT (SELECT min(endpoint) FROM jobs WHERE state = 'waiting' AND endpoint > found.endpoint)
    FROM found WHERE found.endpoint IS NOT NULL
)
SELECT endpoint FROM found WHERE endpoint IS NOT NULL
"""


class Queue:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def accept(
        self,
        *,
        endpoint: str,
        variant: str,
        inference_id: str,
        input_location: str | None,
        body: bytes | None,
        content_type: str | None,
        accept: str | None,
        custom_attributes: str | None,
        timeout_s: float,
        ttl_s: float,
        output_location: str,
        failure_location: str | None,
        output_config: dict[str, Any],
        id: str | None = None,
    ) -> Job:
        """On the disk when it returns. `ttl_s` are seconds on the wall."""
        now = time.time()
        values: dict[str, Any] = {
            "id": id or str(uuid.uuid4()),
            "endpoint": endpoint,
            "variant": variant,
            "inference_id": inference_id,
            "input_location": input_location,
            "body": body,
            "content_type": content_type,
            "accept": accept,
            "custom_attributes": custom_attributes,
            "timeout_s": timeout_s,
            "accepted_at": now,
            "expires_at": now + ttl_s,
            "output_location": output_location,
            "failure_location": failure_location,
            "output_config": json.dumps(output_config),
        }
        seq = await self._database.write(lambda db: db.execute(_INSERT, values).lastrowid)
        return Job(seq=seq or 0, fence=0, leased_at=None, **values)

    async def lease(self, endpoint: str) -> Job | None:
        """The first that waits and hasn't expired."""
        now = time.time()

        def change(db: sqlite3.Connection) -> sqlite3.Row | None:
            row: sqlite3.Row | None = db.execute(
                "UPDATE jobs SET state = 'leased', fence = fence + 1, leased_at = ? WHERE seq = (SELECT seq FROM jobs"
                " WHERE state = 'waiting' AND endpoint = ? AND expires_at > ? ORDER BY seq LIMIT 1)"
                f" RETURNING {_COLUMNS}",
                (now, endpoint, now),
            ).fetchone()
            return row

        row = await self._database.write(change)
        return None if row is None else Job(**dict(row))

    async def release(self, job: Job) -> None:
        """Back to its place, for another holder. The time that it was held is none of its time to wait."""
        await self._database.write(
            lambda db: db.execute(
                f"{_RELEASE} AND seq = :seq AND fence = :fence",
                {"now": time.time(), "seq": job.seq, "fence": job.fence},
            )
        )

    async def decide(self, job: Job, outcome: Outcome) -> bool:
        """Whether it was this holder's to decide. The outcome's file must be on the disk."""
        text = json.dumps(asdict(outcome))
        changed = await self._database.write(
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
        """For a decided job whose output can't be written: nothing of it is in S3 yet."""
        text = json.dumps(asdict(outcome))
        await self._database.write(
            lambda db: db.execute(
                "UPDATE jobs SET outcome = ? WHERE seq = ? AND fence = ? AND state = 'decided'",
                (text, job.seq, job.fence),
            )
        )

    async def finish(self, job: Job, notice: Notification | None) -> None:
        """Its object is in S3. The notice is in the outbox with that."""

        def change(db: sqlite3.Connection) -> None:
            done = db.execute(
                "UPDATE jobs SET state = 'done', finished_at = ?, body = NULL"
                " WHERE seq = ? AND fence = ? AND state = 'decided'",
                (time.time(), job.seq, job.fence),
            ).rowcount
            if done and notice is not None:
                put_notification(db, job.endpoint, job.variant, notice)

        await self._database.write(change)

    async def expire(self) -> list[Job]:
        """A hundred, or the rest, of those whose time to wait is over, leased to the caller; without bodies."""
        now = time.time()
        rows = await self._database.write(
            lambda db: db.execute(
                "UPDATE jobs SET state = 'leased', fence = fence + 1, leased_at = ? WHERE seq IN (SELECT seq FROM jobs"
                " INDEXED BY jobs_expiring WHERE state = 'waiting' AND expires_at <= ? ORDER BY expires_at LIMIT 100)"
                f" RETURNING {_BODILESS}",
                (now, now),
            ).fetchall()
        )
        return [Job(**dict(row)) for row in rows]

    async def next_expiry(self) -> float | None:
        found: float | None = await self._database.read(
            lambda db: db.execute(
                "SELECT min(expires_at) FROM jobs INDEXED BY jobs_expiring WHERE state = 'waiting'"
            ).fetchone()[0]
        )
        return found

    async def recover(self) -> list[tuple[Job, Outcome]]:
        """At the start: what an earlier gateway held waits again; what it had decided is returned, to be written."""

        def change(db: sqlite3.Connection) -> list[sqlite3.Row]:
            db.execute(_RELEASE, {"now": time.time()})
            return db.execute(f"SELECT {_COLUMNS}, outcome FROM jobs WHERE state = 'decided' ORDER BY seq").fetchall()

        found = []
        for row in await self._database.write(change):
            values = dict(row)
            outcome = Outcome(**json.loads(values.pop("outcome")))
            found.append((Job(**values), outcome))
        return found

    async def backlog(self, endpoint: str) -> Backlog:
        def ask(db: sqlite3.Connection) -> Backlog:
            rows = db.execute(
                "SELECT state, count(*) AS count, min(accepted_at) AS oldest FROM jobs"
                " WHERE state IN ('waiting', 'leased', 'decided') AND endpoint = ? GROUP BY state",
                (endpoint,),
            ).fetchall()
            counts = {row["state"]: row["count"] for row in rows}
            waiting = counts.pop("waiting", 0)
            oldest = min((row["oldest"] for row in rows), default=None)
            return Backlog(waiting=waiting, in_flight=sum(counts.values()), oldest_at=oldest)

        return await self._database.read(ask)

    async def awaited(self) -> set[str]:
        """The endpoints that something waits for."""
        rows = await self._database.read(lambda db: db.execute(_AWAITED).fetchall())
        return {row["endpoint"] for row in rows}

    async def lease_all(self, endpoint: str) -> list[Job]:
        """A hundred, or the rest, of what waits for an endpoint that is gone, leased to the caller; without bodies."""
        rows = await self._database.write(
            lambda db: db.execute(
                "UPDATE jobs SET state = 'leased', fence = fence + 1, leased_at = ? WHERE seq IN (SELECT seq FROM jobs"
                f" WHERE state = 'waiting' AND endpoint = ? ORDER BY seq LIMIT 100) RETURNING {_BODILESS}",
                (time.time(), endpoint),
            ).fetchall()
        )
        return [Job(**dict(row)) for row in rows]

    async def prune(self, older_than_s: float) -> None:
        """Forget what is done for so long."""
        limit = time.time() - older_than_s
        await self._database.write(
            lambda db: db.execute("DELETE FROM jobs WHERE state = 'done' AND finished_at < ?", (limit,))
        )


def put_notification(db: sqlite3.Connection, endpoint: str, variant: str, notice: Notification) -> None:
    db.execute(
        "INSERT INTO outbox (endpoint, variant, topic, message, since) VALUES (?, ?, ?, ?, ?)",
        (endpoint, variant, notice.topic, notice.message, time.time()),
    )


_ACCEPTED = (
    "id, endpoint, variant, inference_id, input_location, body, content_type, accept, custom_attributes, timeout_s,"
    " accepted_at, expires_at, output_location, failure_location, output_config"
)
_INSERT = f"INSERT INTO jobs ({_ACCEPTED}) VALUES (:{_ACCEPTED.replace(', ', ', :')})"
_RELEASE = (
    "UPDATE jobs SET state = 'waiting', expires_at = expires_at + max(0, :now - leased_at), leased_at = NULL"
    " WHERE state = 'leased'"
)
