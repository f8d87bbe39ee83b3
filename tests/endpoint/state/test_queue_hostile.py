from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from endpoint.state.database import Database
from endpoint.state.outbox import Notification
from endpoint.state.queue import SCHEMA, Job, Outcome, Queue
from testing import ROOT
from testing.endpoint.jobs import new_job

DONE = Outcome(kind="completed", content_type="text/plain", file="answer")
FAILED = Outcome(kind="upload", reason="ClientError: no such bucket", text="no such bucket")


def with_queue(path: Path, work: Callable[[Queue], Awaitable[Any]]) -> Any:
    """Run `work` as a gateway of its own: the file is all that it has of an earlier one."""

    async def run() -> Any:
        database = Database(path, SCHEMA)
        try:
            return await work(Queue(database))
        finally:
            database.close()

    return asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "endpoint.sqlite"


async def accept(queue: Queue, name: str = "a", endpoint: str = "e", ttl_s: float = 3600, **changes: Any) -> Job:
    return await queue.accept(new_job(name, endpoint=endpoint, ttl_s=ttl_s, **changes))


async def lease(queue: Queue, endpoint: str = "e") -> Job:
    job = await queue.lease(endpoint)
    assert job is not None
    return job


def rows(path: Path, question: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as connection:
        found = connection.execute(question).fetchall()
    connection.close()
    return found


def test_concurrent_jobs_get_distinct_places(path: Path) -> None:
    async def work(queue: Queue) -> tuple[list[int], list[str]]:
        accepted = await asyncio.gather(*(accept(queue, str(number)) for number in range(500)))
        order = [(await lease(queue)).inference_id for _ in range(500)]
        assert await queue.lease("e") is None
        return [job.seq for job in accepted], order

    places, order = with_queue(path, work)
    assert len(set(places)) == 500
    assert order == [str(number) for _, number in sorted(zip(places, range(500), strict=True))]


def test_concurrent_leases_never_share_a_job(path: Path) -> None:
    async def work(queue: Queue) -> list[int]:
        for number in range(50):
            await accept(queue, str(number))
        return [job.seq for job in await asyncio.gather(*(queue.lease("e") for _ in range(80))) if job is not None]

    assert sorted(with_queue(path, work)) == list(range(1, 51))


def test_only_the_last_holder_decides(path: Path) -> None:
    async def work(queue: Queue) -> tuple[bool, bool, bool]:
        await accept(queue)
        stale = await lease(queue)
        await queue.release(stale)
        current = await lease(queue)
        outcomes = await queue.decide(stale, FAILED), await queue.decide(current, DONE), await queue.decide(stale, DONE)
        await queue.redecide(stale, FAILED)
        await queue.finish(stale, Notification(endpoint="e", variant="v", topic="t", message="stale"))
        return outcomes

    assert with_queue(path, work) == (False, True, False)
    assert rows(path, "SELECT state, outcome LIKE '%completed%' FROM jobs") == [("decided", 1)]
    assert rows(path, "SELECT * FROM outbox") == []


def test_stale_holder_cannot_release(path: Path) -> None:
    async def work(queue: Queue) -> Job | None:
        await accept(queue)
        stale = await lease(queue)
        await queue.release(stale)
        await lease(queue)
        await queue.release(stale)
        return await queue.lease("e")

    assert with_queue(path, work) is None


def test_a_job_is_decided_once(path: Path) -> None:
    async def work(queue: Queue) -> list[bool]:
        await accept(queue)
        job = await lease(queue)
        decided = await asyncio.gather(*(queue.decide(job, outcome) for outcome in (DONE, FAILED, DONE)))
        await queue.release(job)
        assert await queue.lease("e") is None
        return decided

    assert with_queue(path, work) == [True, False, False]


def test_redecided_outcome_is_recovered(path: Path) -> None:
    async def work(queue: Queue) -> None:
        await accept(queue)
        job = await lease(queue)
        await queue.decide(job, DONE)
        await queue.redecide(job, FAILED)

    with_queue(path, work)
    [(_, outcome)] = with_queue(path, Queue.recover)
    assert outcome == FAILED and not outcome.succeeded


_ACCEPT_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from endpoint.state.database import Database
from endpoint.state.queue import SCHEMA, Queue
from tests.endpoint.state.test_queue_hostile import accept

async def client(queue, number):
    while True:
        print((await accept(queue, str(number))).id, flush=True)

async def run():
    queue = Queue(Database(Path(sys.argv[1]), SCHEMA))
    await asyncio.gather(*(client(queue, number) for number in range(8)))

asyncio.run(run())
"""


def test_acknowledged_jobs_survive_kill(path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _ACCEPT_FOR_EVER, str(path)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(300)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.wait()
    assert set(acknowledged) <= {name for (name,) in rows(path, "SELECT id FROM jobs")}
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_leased_job_does_not_expire(path: Path) -> None:
    async def work(queue: Queue) -> None:
        await accept(queue)
        await lease(queue)

    with_queue(path, work)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE jobs SET expires_at = 0")
    connection.close()
    assert with_queue(path, Queue.lease_expired) == []


def test_time_under_lease_does_not_count_as_waiting(path: Path) -> None:
    async def work(queue: Queue) -> tuple[Job, Job]:
        await accept(queue, ttl_s=60)
        return await lease(queue), await accept(queue, "second")

    held, _ = with_queue(path, work)
    with sqlite3.connect(path) as connection:  # held for an hour, by a gateway that was killed
        connection.execute("UPDATE jobs SET expires_at = expires_at - 3600, leased_at = leased_at - 3600 WHERE seq = 1")
    connection.close()

    async def next_one(queue: Queue) -> tuple[list[Job], Job]:
        await queue.recover()
        return await queue.lease_expired(), await lease(queue)

    expired, again = with_queue(path, next_one)
    assert expired == [] and again.seq == held.seq
    assert again.expires_at == pytest.approx(held.expires_at, abs=30)


def test_next_expiry_is_the_earliest(path: Path) -> None:
    async def work(queue: Queue) -> tuple[float | None, float | None]:
        nothing = await queue.next_expiry()
        for ttl_s in (500, 100, 300):
            await accept(queue, str(ttl_s), ttl_s=ttl_s)
        return nothing, await queue.next_expiry()

    nothing, first = with_queue(path, work)
    assert nothing is None and first == pytest.approx(time.time() + 100, abs=30)


def test_backlog_and_expiry_use_indexes(path: Path) -> None:
    statements: list[str] = []

    def explain(db: sqlite3.Connection) -> list[str]:
        asked = list(statements)
        return [row["detail"] for text in asked for row in db.execute(f"EXPLAIN QUERY PLAN {text}")]

    async def work() -> list[str]:
        database = Database(path, SCHEMA)
        await database.read(lambda db: db.set_trace_callback(statements.append))
        await Queue(database).backlog("e")
        await Queue(database).next_expiry()
        plans = await database.read(explain)
        database.close()
        return plans

    backlog, expiry = asyncio.run(work())
    assert backlog.startswith("SEARCH jobs USING INDEX jobs_by_state")
    assert expiry.startswith("SEARCH jobs USING INDEX jobs_expiring")
