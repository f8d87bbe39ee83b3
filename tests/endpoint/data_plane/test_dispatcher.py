from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sqlite3
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from endpoint.data_plane.outcomes import failure
from endpoint.data_plane.storage import Source, Storage, UploadFailed
from endpoint.state.database import Database
from endpoint.state.queue import Queue
from testing.emulator import Emulator
from testing.endpoint.dispatching import World, a_world
from testing.endpoint.faulty_container import FaultyContainer
from testing.server import TIMEOUT_S, free_port

MEBIBYTE = 1 << 20
LONG_HEADERS = (
    "Response received from the primary container has headers with length greater than 4096 bytes. Reduce the length of"
    " your container's response headers and update your endpoint"
)
SEE_LOGS = "See the SageMaker Endpoint logs in your account for more information."

LONG_HEADERS = (
    "Response received from the primary container has headers with length greater than 4096 bytes. "
    "Reduce the length of your container's response headers and update your endpoint"
)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    emulator = Emulator(tmp_path_factory.mktemp("emulator"))
    yield emulator
    emulator.close()


@pytest.fixture
def s3(emulator: Emulator) -> Any:
    """Yield a client of S3 with one empty bucket."""
    client = emulator.client("s3")
    with contextlib.suppress(client.exceptions.NoSuchBucket):
        for found in client.list_objects_v2(Bucket="bucket").get("Contents", []):
            client.delete_object(Bucket="bucket", Key=found["Key"])
    client.create_bucket(Bucket="bucket")
    return client


@pytest.fixture
def container() -> Iterator[FaultyContainer]:
    with FaultyContainer() as container:
        yield container


Work = Callable[[World], Awaitable[Any]]


def run(tmp_path: Path, emulator: Emulator, work: Work, **settings: Any) -> Any:
    async def inside() -> Any:
        async with a_world(tmp_path / "data", emulator, **settings) as world:
            return await work(world)

    return asyncio.run(inside())


def objects(s3: Any) -> dict[str, tuple[bytes, str]]:
    found = {}
    for entry in s3.list_objects_v2(Bucket="bucket").get("Contents", []):
        answer = s3.get_object(Bucket="bucket", Key=entry["Key"])
        found[entry["Key"]] = (answer["Body"].read(), answer["ContentType"])
    return found


async def came(container: FaultyContainer, count: int = 1) -> None:
    for _ in range(count):
        assert await asyncio.to_thread(container.came.acquire, timeout=TIMEOUT_S)


# Jobs that succeed


def test_an_answer_becomes_the_output(tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer) -> None:
    async def work(world: World) -> World:
        world.output_config["wants_answer"] = "yes"
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept("type=c/d", content_type="a/b", accept="e/f")
            await world.until_done()
        assert await world.messages() == ["completed"]
        assert world.spooled == []
        return world

    world = run(tmp_path, emulator, work)
    assert objects(s3) == {"out/type.out": (b"body", "c/d")}
    (_, _, told) = world.notifications.made[0]
    assert told == b"body"
    headers = container.seen[0].headers
    assert (headers["content-type"], headers["accept"]) == ("a/b", "e/f")
    assert headers["x-amzn-sagemaker-custom-attributes"] == "type=c/d"
    assert headers["x-amzn-sagemaker-inference-id"] == "type"
    assert world.metrics.sums == {
        "InvocationsProcessed": 1,
        "TimeInBacklog": 1,
        "ModelLatency": 1,
        "ResponseUploadLatency": 1,
        "TotalProcessingTime": 1,
    }


def test_s3_input_is_streamed_with_objects_content_type(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    s3.put_object(Bucket="bucket", Key="in", Body=bytes(20 * MEBIBYTE), ContentType="g/h")

    async def work(world: World) -> None:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept("size=20000000", input_location="s3://bucket/in")
            await world.until_done()
        assert world.metrics.values["RequestDownloadLatency"] > 0

    run(tmp_path, emulator, work, forward_inference_id=False)
    (seen,) = container.seen
    assert (seen.size, seen.digest) == (20 * MEBIBYTE, hashlib.sha256(bytes(20 * MEBIBYTE)).hexdigest())
    assert seen.headers["content-type"] == "g/h"
    assert "accept" not in seen.headers
    assert "x-amzn-sagemaker-inference-id" not in seen.headers
    assert objects(s3)["out/size.out"][0] == b"x" * 20_000_000


def test_first_in_first_out(tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer) -> None:
    async def work(world: World) -> None:
        await world.create(limit=1)
        for number in range(10):
            await world.accept(name=f"job-{number}")
        world.fleet.have(container.url)
        async with world.running():
            await world.until_done(10)

    run(tmp_path, emulator, work)
    ids = [seen.headers["x-amzn-sagemaker-inference-id"] for seen in container.seen]
    assert ids == [f"job-{number}" for number in range(10)]
    assert container.most_at_once == 1


def test_least_loaded_instance_gets_work_within_limit(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World, other: FaultyContainer) -> None:
        await world.create(limit=2)
        world.fleet.have(container.url, other.url)
        async with world.running():
            for number in range(2):
                await world.accept("hold", name=f"job-{number}")
            await came(container)
            await came(other)
            for number in range(2, 6):
                await world.accept("hold", name=f"job-{number}")
            await came(container)
            await came(other)
            assert (world.fleet.in_flight["i-0"], world.fleet.in_flight["i-1"]) == (2, 2)
            assert await world.states() == ["leased"] * 4 + ["waiting"] * 2
            container.let_go(6)
            other.let_go(6)
            await world.until_done(6)
            assert (world.fleet.in_flight["i-0"], world.fleet.in_flight["i-1"]) == (0, 0)
        assert (container.most_at_once, other.most_at_once) == (2, 2)

    with FaultyContainer() as other:
        run(tmp_path, emulator, lambda world: work(world, other))


def test_settings_limit_concurrency_without_client_config(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> None:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            for number in range(5):
                await world.accept("hold", name=f"job-{number}")
            await came(container, 3)
            assert await world.states() == ["leased"] * 3 + ["waiting"] * 2
            container.let_go(5)
            await world.until_done(5)

    run(tmp_path, emulator, work, concurrency=3)


def test_slot_is_free_during_upload(tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer) -> None:
    async def work(world: World) -> None:
        world.storage = stuck = Stuck(world.storage)
        await world.create(limit=1)
        world.fleet.have(container.url)
        async with world.running():
            await world.accept(name="first")
            await world.accept(name="second")
            await came(container, 2)
            stuck.free.set()
            await world.until_done(2)

    run(tmp_path, emulator, work)


def test_jobs_wait_for_an_instance(tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer) -> None:
    async def work(world: World) -> None:
        await world.create()
        async with world.running():
            await world.accept()
            world.fleet.have(container.url)
            await world.until_done()

    run(tmp_path, emulator, work)
    assert list(objects(s3)) == ["out/job.out"]


# Jobs that fail


@pytest.mark.parametrize(
    "told, text, reason, metric, line",
    [
        (
            "status=400",
            "body",
            f"ClientError: Received client error (400) from model. {SEE_LOGS}",
            "Invocation4XXErrors",
            'Received client error (400) from primary with message "body"',
        ),
        (
            "status=503",
            "body",
            f"ClientError: Received server error (503) from model. {SEE_LOGS}",
            "Invocation5XXErrors",
            'Received server error (503) from primary with message "body"',
        ),
        (
            "redirect",
            "",
            f"ClientError: Received server error (302) from model. {SEE_LOGS}",
            "Invocation5XXErrors",
            'Received server error (302) from primary with message ""',
        ),
        (
            "hang_up",
            "Amazon SageMaker could not get a response from the e endpoint. "
            "This can occur when CPU or memory utilization is high. ",
            f"ClientError: Received server error (0) from model. {SEE_LOGS}",
            None,
            "Received no response from primary: ",
        ),
        (
            "half",
            "Amazon SageMaker could not get a response from the e endpoint. ",
            f"ClientError: Received server error (0) from model. {SEE_LOGS}",
            None,
            "Received no response from primary: ",
        ),
        (
            "chunked",
            "ClientError: The response from container primary did not specify the required Content-Length header. ",
            "ClientError: The response from container primary did not specify the required Content-Length header. "
            + SEE_LOGS,
            None,
            "The response from container primary did not specify the required Content-Length header",
        ),
        (
            "long_headers",
            f"ClientError: {LONG_HEADERS}. ",
            f"ClientError: {LONG_HEADERS}. {SEE_LOGS}",
            None,
            LONG_HEADERS,
        ),
        (
            "never",
            "Amazon SageMaker did not get a response from the e endpoint within the "
            "InvocationTimeoutSeconds of the request (0.5).",
            f"ClientError: The model did not respond within 0.5 seconds. {SEE_LOGS}",
            None,
            "Received no response from primary within 0.5 seconds",
        ),
    ],
)
def test_failure_reaches_object_notification_metrics_and_log(
    tmp_path: Path,
    emulator: Emulator,
    s3: Any,
    container: FaultyContainer,
    told: str,
    text: str,
    reason: str,
    metric: str | None,
    line: str,
) -> None:
    async def work(world: World) -> World:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept(told, name="job", timeout_s=0.5 if told == "never" else TIMEOUT_S)
            await world.until_done()
            assert world.spooled == []
        return world

    world = run(tmp_path, emulator, work)
    ((key, (body, _)),) = objects(s3).items()
    assert key == "fail/job-error.out"
    assert body.decode().startswith(text)
    ((_, outcome, _),) = world.notifications.made
    assert outcome.reason == reason
    ((instance, written),) = world.data_log.lines
    assert instance == "i-0" and written.startswith(line)
    assert world.metrics.sums["InvocationFailures"] == world.metrics.sums["InvocationsProcessed"] == 1
    errors = {name: count for name, count in world.metrics.sums.items() if name.endswith("XXErrors")}
    assert errors == ({} if metric is None else {metric: 1})


def test_containers_error_keeps_content_type(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> None:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept("status=422 type=application/problem+json")
            await world.until_done()

    run(tmp_path, emulator, work)
    assert objects(s3) == {"fail/status-error.out": (b"body", "application/problem+json")}


def test_data_log_quotes_at_most_a_kilobyte(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> World:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept("status=500 size=5000")
            await world.until_done()
        return world

    ((_, line),) = run(tmp_path, emulator, work).data_log.lines
    assert line.count("x") == 1024


def test_no_failure_location_writes_nothing(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> None:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept("status=400", failure_location=None)
            await world.accept("hang_up", failure_location=None)
            await world.until_done(2)
            assert world.spooled == []
        assert sorted(await world.messages()) == ["client_error", "no_answer"]

    run(tmp_path, emulator, work)
    assert objects(s3) == {}


def test_missing_input_is_failure(tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer) -> None:
    async def work(world: World) -> World:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept(input_location="s3://bucket/missing")
            await world.until_done()
        return world

    world = run(tmp_path, emulator, work)
    body, _ = objects(s3)["fail/job-error.out"]
    assert body.startswith(b"ClientError: Unable to read the input of the request: NoSuchKey")
    assert world.metrics.sums["RequestDownloadFailures"] == 1
    assert container.seen == []


def test_expired_job_is_failure(tmp_path: Path, emulator: Emulator, s3: Any) -> None:
    async def work(world: World) -> World:
        await world.create()
        async with world.running():
            await world.accept(ttl_s=0.3)
            await world.until_done()
        return world

    world = run(tmp_path, emulator, work)
    body, _ = objects(s3)["fail/job-error.out"]
    assert b"RequestTTLSeconds" in body
    assert (world.metrics.sums["ExpiredRequests"], world.metrics.sums["InvocationsProcessed"]) == (1, 0)


def test_many_expired_jobs_end(tmp_path: Path, emulator: Emulator, s3: Any) -> None:
    async def work(world: World) -> None:
        await world.create()
        for number in range(120):
            await world.accept(name=f"job-{number}", ttl_s=0.0, failure_location=None)
        async with world.running():
            await world.until_done(120)

    run(tmp_path, emulator, work)


def test_unanswered_job_is_redelivered_three_times(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> World:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept("hang_up")
            await world.until_done()
        return world

    world = run(tmp_path, emulator, work, on_no_answer="redeliver")
    assert len(container.seen) == 4
    assert list(objects(s3)) == ["fail/hang_up-error.out"]
    assert world.metrics.sums["InvocationFailures"] == 1


def test_job_that_ending_instance_leaves_is_redelivered(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World, after: FaultyContainer) -> None:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept("hold status=503", name="job")
            await came(container)
            world.fleet.have(after.url)
            container.let_go()
            await came(after)
            assert objects(s3) == {} and world.data_log.lines == []
            after.let_go()
            await world.until_done()

    with FaultyContainer() as after:
        run(tmp_path, emulator, lambda world: work(world, after), on_no_answer="redeliver")
        assert len(container.seen) == len(after.seen) == 1
    assert list(objects(s3)) == ["fail/job-error.out"], "an instance that serves can't give up"


def test_redelivered_job_keeps_its_place(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> None:
        await world.create(limit=1)
        world.fleet.have(f"http://127.0.0.1:{free_port()}")
        async with world.running():
            for number in range(3):
                await world.accept(name=f"job-{number}")
            await world.until(lambda: world.data_log.lines)
            world.fleet.have(container.url)
            await world.until_done(3)

    run(tmp_path, emulator, work, on_no_answer="redeliver", ping_every_s=0.2)
    ids = [seen.headers["x-amzn-sagemaker-inference-id"] for seen in container.seen]
    assert ids == ["job-0", "job-1", "job-2"]


def test_dead_instance_does_not_drain_queue(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> None:
        await world.create(limit=1)
        dead = f"http://127.0.0.1:{free_port()}"
        world.fleet.have(dead)
        async with world.running():
            for number in range(3):
                await world.accept(name=f"job-{number}")
            await world.until_done(1)
            assert await world.states() == ["done", "waiting", "waiting"]
            world.fleet.have(dead, container.url)
            await world.until_done(3)

    run(tmp_path, emulator, work, ping_every_s=1000.0)
    assert sorted(objects(s3)) == ["fail/job-0-error.out", "out/job-1.out", "out/job-2.out"]


# Failures of S3


class Stuck(Storage):
    """A storage whose uploads wait until `free` is set."""

    def __init__(self, storage: Storage) -> None:
        self.asked = asyncio.Event()
        self.free = asyncio.Event()
        self._storage = storage

    async def open(self, location: str) -> Source:
        return await self._storage.open(location)

    async def put(self, *args: Any) -> None:
        self.asked.set()
        await self.free.wait()
        await self._storage.put(*args)


class Failing(Storage):
    """A storage whose first uploads fail."""

    def __init__(self, storage: Storage, times: int) -> None:
        self.left = times
        self._storage = storage

    async def open(self, location: str) -> Source:
        return await self._storage.open(location)

    async def put(self, *args: Any) -> None:
        if self.left > 0:
            self.left -= 1
            raise UploadFailed("InternalError: once more", may_pass=True)
        await self._storage.put(*args)


def test_an_upload_is_tried_again(tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer) -> None:
    async def work(world: World) -> None:
        world.storage = Failing(world.storage, 3)
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept()
            await world.until_done()

    run(tmp_path, emulator, work, time_scale=6.0)
    assert objects(s3) == {"out/job.out": (b"body", "text/plain")}


def test_unwritable_output_makes_failure(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> World:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept(output_location="s3://nowhere/out")
            await world.until_done()
            assert world.spooled == []
        return world

    world = run(tmp_path, emulator, work)
    ((key, (body, _)),) = objects(s3).items()
    assert key == "fail/job-error.out"
    assert body.startswith(b"ClientError: Unable to write the output of the request: NoSuchBucket")
    ((_, outcome, _),) = world.notifications.made
    assert outcome.kind == "upload"
    assert world.metrics.sums["ResponseUploadFailures"] == world.metrics.sums["InvocationFailures"] == 1
    ((_, line),) = world.data_log.lines
    assert "NoSuchBucket" in line


def test_invalid_output_location_makes_failure(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> None:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept(output_location="s3://Bad_Bucket!/out")
            await world.until_done()

    run(tmp_path, emulator, work)
    ((_, (body, _)),) = objects(s3).items()
    assert b"s3://Bad_Bucket!/out is not a valid S3 location" in body


def test_job_accepted_after_deletion_ends_as_deleted(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> None:
        await world.create()
        async with world.running():
            await world.catalog.delete("endpoint", "e")
            world.wake()
            for number in range(3):
                await world.accept(name=f"job{number}")
            await world.until_done(3)

    run(tmp_path, emulator, work)
    assert sorted(objects(s3)) == [f"fail/job{number}-error.out" for number in range(3)]


def test_waiting_job_of_deleted_endpoint_is_ended(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> World:
        await world.create()
        async with world.running():
            await world.accept()
            await world.catalog.delete("endpoint", "e")
            world.wake()
            await world.until_done()
        return world

    world = run(tmp_path, emulator, work)
    ((key, (body, _)),) = objects(s3).items()
    assert key == "fail/job-error.out" and b"The endpoint was deleted" in body
    assert [outcome.kind for _, outcome, _ in world.notifications.made] == ["deleted"]


# Death of the gateway


def test_next_gateway_delivers_decided_jobs(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> None:
        storage = world.storage
        world.storage = stuck = Stuck(storage)
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept("size=100000")
            await stuck.asked.wait()
        assert await world.states() == ["decided"]
        orphan = world.settings.data_dir / "answers" / str(uuid.uuid4())
        orphan.write_bytes(b"half an answer of an undecided job")
        world.storage = storage
        world.fleet.have()
        async with world.running():
            await world.until_done()
            assert world.spooled == []
        assert await world.messages() == ["completed"]

    run(tmp_path, emulator, work)
    assert objects(s3)["out/size.out"][0] == b"x" * 100_000
    assert len(container.seen) == 1


def test_next_gateway_gives_in_flight_jobs_again(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> None:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept("hold")
            await came(container)
        assert world.spooled == []
        container.let_go(2)
        async with world.running():
            await world.until_done()
        assert await world.messages() == ["completed"]

    run(tmp_path, emulator, work)
    assert objects(s3)["out/hold.out"][0] == b"body"
    assert len(container.seen) == 2


def test_decided_job_of_deleted_endpoint_is_delivered(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> None:
        await world.accept()
        job = await world.queue.lease("e")
        assert job is not None
        assert await world.queue.decide(job, failure(job, "timeout"))
        async with world.running():
            await world.until_done()
        assert await world.messages() == ["timeout"]

    run(tmp_path, emulator, work)
    assert list(objects(s3)) == ["fail/job-error.out"]


def test_stale_holder_writes_nothing(tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer) -> None:
    async def work(world: World) -> None:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept("hold")
            await came(container)
            await world.queue.recover()  # another gateway begins
            world.fleet.have()
            assert await world.queue.lease("e") is not None
            container.let_go()
            await world.until(lambda: not world.fleet.in_flight["i-0"])
            world.fleet.have(container.url)
            await world.accept("type=c/d")
            await world.until_done()
            assert world.spooled == []
        assert await world.states() == ["leased", "done"]

    run(tmp_path, emulator, work)
    assert list(objects(s3)) == ["out/type.out"]


# Internal errors


class AilingDatabase(Database):
    """A database that fails each operation of the queue once."""

    def __init__(self, database: Database) -> None:
        self._sound = database
        self._failed: set[str] = set()

    async def write(self, change: Callable[[sqlite3.Connection], Any]) -> Any:
        self._fail_once(change)
        return await self._sound.write(change)

    async def read(self, query: Callable[[sqlite3.Connection], Any]) -> Any:
        self._fail_once(query)
        return await self._sound.read(query)

    def _fail_once(self, call: Callable[[sqlite3.Connection], Any]) -> None:
        operation = call.__qualname__.partition(".<locals>")[0]
        if operation not in self._failed:
            self._failed.add(operation)
            raise sqlite3.OperationalError("database or disk is full")


def test_an_ailing_database_ends_nothing(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("endpoint.data_plane.dispatcher._RETRY_INTERVAL_S", 0.01)
    monkeypatch.setattr("endpoint.state.queue._RETRY_INTERVAL_S", 0.01)

    async def work(world: World) -> None:
        await world.create()
        await world.accept()
        world.queue = Queue(AilingDatabase(world.database))
        world.fleet.have(container.url)
        async with world.running():
            await world.until_done()
        assert await world.messages() == ["completed"]

    run(tmp_path, emulator, work)
    assert len(container.seen) == 1


def test_internal_error_ends_its_job_alone(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    class Broken(Storage):
        async def open(self, location: str) -> Any:
            raise ZeroDivisionError

    async def work(world: World) -> None:
        world.storage = Broken(emulator)
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            await world.accept(name="first", input_location="s3://bucket/in")
            await world.accept(name="second")
            await world.until_done(2)

    run(tmp_path, emulator, work)
    assert sorted(objects(s3)) == ["fail/first-error.out", "out/second.out"]


def test_answer_that_disk_refuses_is_failure(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer
) -> None:
    async def work(world: World) -> None:
        await world.create()
        async with world.running():
            job = await world.accept()
            (world.settings.data_dir / "answers" / f"{job.id}-1").mkdir(parents=True)
            world.fleet.have(container.url)
            await world.until_done()

    run(tmp_path, emulator, work)
    assert b"can't be kept on the disk" in objects(s3)["fail/job-error.out"][0]


def test_log_has_no_bodies(
    tmp_path: Path, emulator: Emulator, s3: Any, container: FaultyContainer, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(world: World) -> None:
        await world.create()
        world.fleet.have(container.url)
        async with world.running():
            for told in ("status=400", "status=500", "garbage", "chunked"):
                await world.accept(told, body=b"the secret")
            await world.until_done(4)

    with caplog.at_level("DEBUG", logger="endpoint"):
        run(tmp_path, emulator, work)
    assert "status of e failed: client_error" in caplog.text
    assert "secret" not in caplog.text and "SSH" not in caplog.text
