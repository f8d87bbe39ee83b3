from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from endpoint.state.database import Database
from endpoint.state.outbox import Notification
from endpoint.state.queue import SCHEMA, Backlog, Job, Outcome, Queue
from testing.endpoint.jobs import new_job


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[Queue], Awaitable[Any]]], Any]:
    """Return a function whose calls are gateways of their own on one file."""

    def run(work: Callable[[Queue], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            database = Database(tmp_path / "db", SCHEMA)
            try:
                return await work(Queue(database))
            finally:
                database.close()

        return asyncio.run(main())

    return run


Run = Callable[[Callable[[Queue], Awaitable[Any]]], Any]


async def accept(queue: Queue, name: str, endpoint: str = "e", ttl_s: float = 100.0, **others: Any) -> Job:
    return await queue.accept(new_job(name, endpoint=endpoint, ttl_s=ttl_s, **others))


async def leased(queue: Queue, endpoint: str = "e") -> Job:
    job = await queue.lease(endpoint)
    assert job is not None
    return job


DONE = Outcome(kind="completed", content_type="text/plain", file="answer")


def test_first_in_first_out_by_endpoint(run: Run) -> None:
    async def work(queue: Queue) -> None:
        for name in ("a", "b", "c"):
            await accept(queue, name)
        await accept(queue, "other", endpoint="f")
        assert [(await leased(queue)).inference_id for _ in range(3)] == ["a", "b", "c"]
        assert await queue.lease("e") is None
        assert (await leased(queue, "f")).inference_id == "other"

    run(work)


def test_a_job_is_what_was_accepted(run: Run) -> None:
    async def work(queue: Queue) -> None:
        job = await accept(queue, "a", body=b"\0text", input_location=None, custom_attributes="x=1")
        held = await leased(queue)
        assert (held.id, held.body, held.custom_attributes, held.accepted_at) == (
            job.id,
            b"\0text",
            "x=1",
            job.accepted_at,
        )
        assert (job.fence, held.fence) == (0, 1) and held.leased_at is not None

    run(work)


def test_released_job_keeps_its_place(run: Run) -> None:
    async def work(queue: Queue) -> None:
        for name in ("a", "b"):
            await accept(queue, name)
        await queue.release(await leased(queue))
        assert (await leased(queue)).inference_id == "a"

    run(work)


def test_only_last_of_two_holders_decides(run: Run) -> None:
    async def work(queue: Queue) -> None:
        await accept(queue, "a")
        first = await leased(queue)
        await queue.recover()  # as if the gateway had died
        second = await leased(queue)
        assert not await queue.decide(first, DONE)
        await queue.release(first)
        assert await queue.lease("e") is None
        assert await queue.decide(second, DONE) and not await queue.decide(second, DONE)

    run(work)


def test_recover_releases_leased_and_returns_decided_jobs(run: Run) -> None:
    async def die(queue: Queue) -> None:
        for name in ("a", "b", "c"):
            await accept(queue, name)
        await queue.decide(await leased(queue), DONE)
        await leased(queue)

    async def live(queue: Queue) -> None:
        ((job, outcome),) = await queue.recover()
        assert (job.inference_id, outcome) == ("a", DONE)
        assert await queue.backlog("e") == Backlog(waiting=2, in_flight=1, oldest_at=job.accepted_at)
        await queue.finish(job, None)
        assert [(await leased(queue)).inference_id for _ in range(2)] == ["b", "c"]
        assert await queue.recover() == []

    run(die)
    run(live)


def test_finish_puts_one_notification(run: Run) -> None:
    async def work(queue: Queue) -> None:
        await accept(queue, "a")
        job = await leased(queue)
        notice = Notification(endpoint="e", variant="v", topic="arn:topic", message="{}")
        await queue.finish(job, notice)  # does nothing: the job is not decided
        await queue.decide(job, DONE)
        await queue.finish(job, notice)
        await queue.finish(job, notice)
        rows = await queue._database.read(lambda db: db.execute("SELECT * FROM outbox").fetchall())
        assert [(row["topic"], row["endpoint"], row["message"]) for row in rows] == [("arn:topic", "e", "{}")]
        assert (await queue.backlog("e")).size == 0

    run(work)


def test_expired_job_is_only_leased_as_expired(run: Run) -> None:
    async def work(queue: Queue) -> None:
        await accept(queue, "late", ttl_s=0.0)
        job = await accept(queue, "in time")
        assert await queue.next_expiry() is not None
        assert (await leased(queue)).inference_id == "in time"
        (late,) = await queue.lease_expired()
        assert late.inference_id == "late" and await queue.lease_expired() == []
        assert await queue.decide(late, Outcome(kind="expired", reason="too late", text="too late"))
        assert await queue.next_expiry() is None and job.expires_at > late.expires_at

    run(work)


def test_lease_all_takes_waiting_jobs_of_deleted_endpoint(run: Run) -> None:
    async def work(queue: Queue) -> None:
        for name in ("a", "b"):
            await accept(queue, name)
        held = await leased(queue)
        assert await queue.waiting_endpoints() == {"e"}
        assert [job.inference_id for job in await queue.lease_all("e")] == ["b"]
        assert (
            await queue.waiting_endpoints() == set()
            and await queue.lease("e") is None
            and await queue.decide(held, DONE)
        )

    run(work)


def test_prune_forgets_old_done_jobs(run: Run) -> None:
    async def work(queue: Queue) -> None:
        await accept(queue, "a")
        await accept(queue, "b")
        job = await leased(queue)
        await queue.decide(job, DONE)
        await queue.finish(job, None)
        await queue.prune(older_than_s=3600)
        count = "SELECT count(*) FROM jobs"
        assert (await queue._database.read(lambda db: db.execute(count).fetchone()[0])) == 2
        await queue.prune(older_than_s=-1)
        assert (await queue._database.read(lambda db: db.execute(count).fetchone()[0])) == 1

    run(work)
