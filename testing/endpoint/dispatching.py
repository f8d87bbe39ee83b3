"""A dispatcher for the tests, with a real database, containers and S3; fleet, notifications and metrics are stubs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

from endpoint.cloudwatch.data_log import DataLog
from endpoint.cloudwatch.metrics import Metrics
from endpoint.data_plane.attempt import Attempt
from endpoint.data_plane.container_client import ContainerClient
from endpoint.data_plane.delivery import Delivery
from endpoint.data_plane.dispatcher import Dispatcher
from endpoint.data_plane.notifications import Notifications
from endpoint.data_plane.storage import Storage
from endpoint.fleet.fleet import Fleet
from endpoint.fleet.instance import Instance
from endpoint.settings import Settings
from endpoint.state import catalog, queue
from endpoint.state.catalog import Catalog
from endpoint.state.database import Database
from endpoint.state.outbox import Notification
from endpoint.state.queue import Job, Outcome, Queue
from testing.endpoint.jobs import new_job
from testing.server import TIMEOUT_S

POLL_INTERVAL_S = 0.01


class StubFleet(Fleet):
    """Has the instances of the endpoint `e` that it is told."""

    def __init__(self) -> None:
        self.in_flight = Counter()
        self._healthy: list[Instance] = []
        self._version = 0
        self._changed = asyncio.Event()

    def have(self, *urls: str) -> None:
        """Set the instances, which are called i-0, i-1 and so on."""
        self._healthy = [
            Instance(id=f"i-{number}", endpoint="e", variant="v", url=url) for number, url in enumerate(urls)
        ]
        self._note_change()

    def healthy(self, endpoint: str) -> list[Instance]:
        return self._healthy if endpoint == "e" else []


class StubNotifications(Notifications):
    def __init__(self) -> None:
        self.made: list[tuple[Job, Outcome, bytes | None]] = []

    def wants_answer(self, job: Job, outcome: Outcome) -> bool:
        return bool(job.output_options.get("wants_answer"))

    def make(self, job: Job, outcome: Outcome, answer: bytes | None) -> Notification | None:
        self.made.append((job, outcome, answer))
        return Notification(endpoint=job.endpoint, variant=job.variant, topic="topic", message=outcome.kind)

    def wake(self) -> None:
        pass


class StubMetrics(Metrics):
    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.values: dict[str, float] = {}

    def count(self, endpoint: str, variant: str, name: str, value: float = 1.0) -> None:
        assert (endpoint, variant) == ("e", "v")
        self.sums[name] += 1
        self.values[name] = value


class StubDataLog(DataLog):
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        """Instance and text of each line."""

    def write(self, endpoint: str, variant: str, instance_id: str, inference_id: str, text: str) -> None:
        self.lines.append((instance_id, text))


class World:
    """Owns the database. Each `running` is the work of one gateway on it."""

    def __init__(self, settings: Settings, backend: Any) -> None:
        self.settings = settings
        self.database = Database(settings.data_dir / "db", catalog.SCHEMA, queue.SCHEMA)
        self.catalog = Catalog(self.database)
        self.queue = Queue(self.database)
        self.fleet = StubFleet()
        self.storage: Storage = Storage(backend)
        self.notifications = StubNotifications()
        self.metrics = StubMetrics()
        self.output_config = {"S3OutputPath": "s3://bucket/out"}
        self.data_log = StubDataLog()
        self.dispatcher: Dispatcher | None = None
        self.delivery: Delivery | None = None
        """The last dispatcher's delivery."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Dispatch until the `async with` ends."""
        containers = ContainerClient()
        delivery = Delivery(self.settings, self.queue, self.storage, self.notifications, self.metrics, self.data_log)
        self.delivery = delivery
        make_attempt = partial(
            Attempt,
            self.settings,
            self.storage,
            containers,
            self.metrics,
            self.data_log,
            delivery.answers,
            self.fleet.serves,
        )
        self.dispatcher = Dispatcher(self.settings, self.catalog, self.queue, self.fleet, make_attempt, delivery)
        task = asyncio.create_task(self.dispatcher.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await containers.close()
            self.dispatcher = None

    def wake(self) -> None:
        """Wake the dispatcher, if one runs."""
        if self.dispatcher is not None:
            self.dispatcher.wake()

    async def create(self, limit: int | None = None, **config: Any) -> None:
        """Create the endpoint `e`."""
        client = {} if limit is None else {"ClientConfig": {"MaxConcurrentInvocationsPerInstance": limit}}
        async_config = {"OutputConfig": self.output_config, **client}
        variants = [{"VariantName": "v", "ModelName": "m"}]
        deployed = {
            "config": {"ProductionVariants": variants, "AsyncInferenceConfig": async_config, **config},
            "model": {"PrimaryContainer": {"Image": "i"}},
        }
        state = {
            "status": "InService",
            "failure_reason": None,
            "config_name": "c",
            "target_config_name": None,
            "desired": 1,
            "current": 1,
            "deployed": {"c": deployed},
        }
        await self.catalog.create("endpoint", "e", "arn:e", {}, {}, state)

    async def accept(self, command: str = "", **changes: Any) -> Job:
        """Accept a job that commands its container what to do; by default with a small inline body."""
        name = changes.pop("name", command.partition("=")[0] or "job")
        values: dict[str, Any] = {
            "custom_attributes": command,
            "timeout_s": TIMEOUT_S,
            "output_location": f"s3://bucket/out/{name}.out",
            "failure_location": f"s3://bucket/fail/{name}-error.out",
            "output_config": json.dumps(self.output_config),
        }
        if "input_location" not in changes:
            values["body"] = b"body"
        job = await self.queue.accept(new_job(name, **values | changes))
        self.wake()
        return job

    async def until(self, question: Callable[[], object]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not question():
                await asyncio.sleep(POLL_INTERVAL_S)

    async def until_done(self, count: int = 1) -> None:
        """Wait until so many jobs are done and counted in the metrics, which comes after the last write."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                states = await self.states()
                done = states.count("done")
                undelivered = 0 if self.delivery is None else self.delivery.undelivered
                if done >= count and undelivered <= len(states) - done:
                    return
                await asyncio.sleep(POLL_INTERVAL_S)

    async def messages(self) -> list[str]:
        rows = await self.database.read(lambda db: db.execute("SELECT message FROM outbox ORDER BY seq").fetchall())
        return [row["message"] for row in rows]

    async def states(self) -> list[str]:
        rows = await self.database.read(lambda db: db.execute("SELECT state FROM jobs ORDER BY seq").fetchall())
        return [row["state"] for row in rows]

    @property
    def spooled(self) -> list[Path]:
        return list((self.settings.data_dir / "answers").iterdir())


@contextlib.asynccontextmanager
async def a_world(data_dir: Path, backend: Any, **settings: Any) -> AsyncIterator[World]:
    data_dir.mkdir(exist_ok=True)
    values: dict[str, Any] = {"data_dir": data_dir, "ping_every_s": 0.01, "time_scale": 60.0}
    world = World(Settings(**values | settings), backend)
    try:
        yield world
    finally:
        world.database.close()
