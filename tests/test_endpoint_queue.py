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

from endpoint.database import Database
from endpoint.queue import SCHEMA, Job, Notice, Outcome, Queue

DONE = Outcome(kind="completed", content_type="text/plain", file="answer")
FAILED = Outcome(kind="upload", reason="ClientError: no such bucket", text="no such bucket")


def with_queue(path: Path, work: Callable[[Queue], Awaitable[Any]]) -> Any:
    """As a gateway of its own on that file: what an earlier one did is on the disk only."""

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


async def accept(queue: Queue, name: str = "a", endpoint: str = "e", ttl_s: float = 3600, **given: Any) -> Job:
    request = {
        "variant": "v",
        "inference_id": name,
        "input_location": "s3://bucket/in",
        "body": None,
        "content_type": None,
        "accept": None,
        "custom_attributes": None,
        "timeout_s": 900,
        "output_location": f"s3://bucket/{name}.out",
        "failure_location": None,
    }
    return await queue.accept(endpoint=endpoint, ttl_s=ttl_s, **request | given)


async def lease(queue: Queue, endpoint: str = "e") -> Job:
    job = await queue.lease(endpoint)
    assert job is not None
    return job


def rows(path: Path, question: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as connection:
        found = connection.execute(question).fetchall()
    connection.close()
    return found


# In and out


def test_what_was_accepted_is_leased_as_it_was_given(path: Path) -> None:
    given = {"body": b"\x00\xff", "input_location": None, "content_type": "a/b", "accept": "c/d", "timeout_s": 7}

    async def work(queue: Queue) -> tuple[Job, Job]:
        accepted = await accept(queue, custom_attributes="x=y", failure_location="s3://b/f", **given)
        return accepted, await lease(queue)

    accepted, leased = with_queue(path, work)
    same = [name for name in Job.__dataclass_fields__ if name not in ("fence", "leased_at")]
    assert [getattr(leased, name) for name in same] == [getattr(accepted, name) for name in same]
    assert (leased.body, leased.timeout_s, leased.fence, accepted.fence) == (b"\x00\xff", 7, 1, 0)


def test_first_accepted_is_first_leased_and_each_endpoint_has_a_line_of_its_own(path: Path) -> None:
    async def work(queue: Queue) -> tuple[list[str], list[str]]:
        for number in range(6):
            await accept(queue, str(number), endpoint="ef"[number % 2])
        return tuple([[(await lease(queue, name)).inference_id for _ in range(3)] for name in "ef"])

    assert with_queue(path, work) == (["0", "2", "4"], ["1", "3", "5"])


def test_what_is_accepted_at_once_gets_places_of_its_own(path: Path) -> None:
    async def work(queue: Queue) -> tuple[list[int], list[str]]:
        accepted = await asyncio.gather(*(accept(queue, str(number)) for number in range(500)))
        order = [(await lease(queue)).inference_id for _ in range(500)]
        assert await queue.lease("e") is None
        return [job.seq for job in accepted], order

    places, order = with_queue(path, work)
    assert len(set(places)) == 500
    assert order == [str(number) for _, number in sorted(zip(places, range(500), strict=True))]


def test_no_job_is_leased_twice_by_holders_that_ask_at_once(path: Path) -> None:
    async def work(queue: Queue) -> list[int]:
        for number in range(50):
            await accept(queue, str(number))
        return [job.seq for job in await asyncio.gather(*(queue.lease("e") for _ in range(80))) if job is not None]

    assert sorted(with_queue(path, work)) == list(range(1, 51))


def test_an_unknown_endpoint_has_nothing_waiting(path: Path) -> None:
    async def work(queue: Queue) -> tuple[Any, Any]:
        return await queue.lease("nobody"), (await queue.backlog("nobody")).oldest_at

    assert with_queue(path, work) == (None, None)


# Redelivery and fencing


def test_a_released_job_has_its_place_again(path: Path) -> None:
    async def work(queue: Queue) -> list[str]:
        for number in range(3):
            await accept(queue, str(number))
        first = await lease(queue)
        await lease(queue)
        await queue.release(first)
        return [(await lease(queue)).inference_id for _ in range(2)]

    assert with_queue(path, work) == ["0", "2"]


def test_only_the_last_holder_decides(path: Path) -> None:
    async def work(queue: Queue) -> tuple[bool, bool, bool]:
        await accept(queue)
        stale = await lease(queue)
        await queue.release(stale)
        current = await lease(queue)
        outcomes = await queue.decide(stale, FAILED), await queue.decide(current, DONE), await queue.decide(stale, DONE)
        await queue.redecide(stale, FAILED)
        await queue.finish(stale, Notice(topic="t", message="stale"))
        return outcomes

    assert with_queue(path, work) == (False, True, False)
    assert rows(path, "SELECT state, outcome LIKE '%completed%' FROM jobs") == [("decided", 1)]
    assert rows(path, "SELECT * FROM outbox") == []


def test_a_stale_holder_cannot_release_what_another_holds(path: Path) -> None:
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


# The end of a job


def test_the_notice_is_in_the_outbox_with_the_end_and_once(path: Path) -> None:
    async def work(queue: Queue) -> None:
        await accept(queue, body=b"input", input_location=None)
        job = await lease(queue)
        await queue.finish(job, Notice(topic="t", message="not decided"))
        await queue.decide(job, DONE)
        for _ in range(2):
            await queue.finish(job, Notice(topic="t", message="m"))

    with_queue(path, work)
    assert rows(path, "SELECT endpoint, variant, topic, message FROM outbox") == [("e", "v", "t", "m")]
    assert rows(path, "SELECT state, body FROM jobs") == [("done", None)]


def test_an_output_that_cannot_be_written_becomes_a_failure(path: Path) -> None:
    async def work(queue: Queue) -> None:
        await accept(queue)
        job = await lease(queue)
        await queue.decide(job, DONE)
        await queue.redecide(job, FAILED)

    with_queue(path, work)
    [(_, outcome)] = with_queue(path, Queue.recover)
    assert outcome == FAILED and not outcome.succeeded


def test_what_is_done_is_kept_until_it_is_pruned(path: Path) -> None:
    async def work(queue: Queue) -> None:
        await accept(queue, "done")
        await accept(queue, "held")
        await accept(queue, "waiting")
        job = await lease(queue)
        await lease(queue)
        await queue.decide(job, DONE)
        await queue.finish(job, None)
        await queue.prune(3600)

    names = "SELECT inference_id FROM jobs ORDER BY seq"
    with_queue(path, work)
    assert rows(path, names) == [("done",), ("held",), ("waiting",)]
    with_queue(path, lambda queue: queue.prune(0))
    assert rows(path, names) == [("held",), ("waiting",)]


# The next gateway


def test_the_next_gateway_has_all_in_its_place(path: Path) -> None:
    async def earlier(queue: Queue) -> None:
        for number in range(4):
            await accept(queue, str(number))
        await queue.decide(await lease(queue), DONE)
        await lease(queue)

    async def next_one(queue: Queue) -> tuple[list[Any], list[str]]:
        decided = await queue.recover()
        return [(job.inference_id, outcome) for job, outcome in decided], [
            (await lease(queue)).inference_id for _ in range(3)
        ]

    with_queue(path, earlier)
    assert with_queue(path, next_one) == ([("0", DONE)], ["1", "2", "3"])


def test_what_an_earlier_gateway_had_decided_is_finished_by_the_next(path: Path) -> None:
    async def earlier(queue: Queue) -> None:
        await accept(queue)
        await queue.decide(await lease(queue), DONE)

    async def next_one(queue: Queue) -> None:
        [(job, _)] = await queue.recover()
        await queue.finish(job, Notice(topic="t", message="m"))

    with_queue(path, earlier)
    with_queue(path, next_one)
    assert with_queue(path, Queue.recover) == []
    assert rows(path, "SELECT message FROM outbox") == [("m",)]


_ACCEPT_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from endpoint.database import Database
from endpoint.queue import SCHEMA, Queue
from test_endpoint_queue import accept

async def client(queue, number):
    while True:
        print((await accept(queue, str(number))).id, flush=True)

async def run():
    queue = Queue(Database(Path(sys.argv[1]), SCHEMA))
    await asyncio.gather(*(client(queue, number) for number in range(8)))

asyncio.run(run())
"""


def test_what_was_acknowledged_before_a_kill_is_there_after_it(path: Path) -> None:
    tests = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", _ACCEPT_FOR_EVER, str(path)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": f"{tests.parent}:{tests}"},
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


# The time to live


def test_what_waited_too_long_is_never_leased_and_found_once(path: Path) -> None:
    async def work(queue: Queue) -> tuple[str, list[str], list[Job]]:
        await accept(queue, "late", ttl_s=0)
        await accept(queue, "in time")
        leased = (await lease(queue)).inference_id
        assert await queue.lease("e") is None
        return leased, [job.inference_id for job in await queue.expire()], await queue.expire()

    assert with_queue(path, work) == ("in time", ["late"], [])


def test_an_expired_job_is_decided_by_who_found_it(path: Path) -> None:
    async def work(queue: Queue) -> bool:
        await accept(queue, ttl_s=0)
        [job] = await queue.expire()
        return await queue.decide(job, Outcome(kind="expired", reason="too late", text="too late"))

    assert with_queue(path, work)


def test_the_time_to_live_ends_with_the_lease(path: Path) -> None:
    async def work(queue: Queue) -> None:
        await accept(queue)
        await lease(queue)

    with_queue(path, work)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE jobs SET expires_at = 0")
    connection.close()
    assert with_queue(path, Queue.expire) == []


def test_the_time_that_a_job_was_held_is_none_of_its_time_to_wait(path: Path) -> None:
    async def work(queue: Queue) -> tuple[Job, Job]:
        await accept(queue, ttl_s=60)
        return await lease(queue), await accept(queue, "second")

    held, _ = with_queue(path, work)
    with sqlite3.connect(path) as connection:  # held for an hour, by a gateway that was killed
        connection.execute("UPDATE jobs SET expires_at = expires_at - 3600, leased_at = leased_at - 3600 WHERE seq = 1")
    connection.close()

    async def next_one(queue: Queue) -> tuple[list[Job], Job]:
        await queue.recover()
        return await queue.expire(), await lease(queue)

    expired, again = with_queue(path, next_one)
    assert expired == [] and again.seq == held.seq
    assert again.expires_at == pytest.approx(held.expires_at, abs=30)


def test_the_next_expiry_is_that_of_the_first_to_expire(path: Path) -> None:
    async def work(queue: Queue) -> tuple[float | None, float | None]:
        nothing = await queue.next_expiry()
        for ttl_s in (500, 100, 300):
            await accept(queue, str(ttl_s), ttl_s=ttl_s)
        return nothing, await queue.next_expiry()

    nothing, first = with_queue(path, work)
    assert nothing is None and first == pytest.approx(time.time() + 100, abs=30)


# What the metrics ask


def test_the_backlog_counts_what_waits_and_what_is_not_done(path: Path) -> None:
    async def work(queue: Queue) -> tuple[Any, Any]:
        oldest, *_ = [await accept(queue, str(number)) for number in range(5)]
        await accept(queue, endpoint="f")
        jobs = [await lease(queue) for _ in range(3)]
        for job in jobs[1:]:
            await queue.decide(job, DONE)
        await queue.finish(jobs[2], None)
        return await queue.backlog("e"), oldest

    backlog, oldest = with_queue(path, work)
    assert (backlog.waiting, backlog.in_flight, backlog.size) == (2, 2, 4)
    assert backlog.oldest_at == oldest.accepted_at


def test_questions_about_a_long_history_are_answered_by_an_index(path: Path) -> None:
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
