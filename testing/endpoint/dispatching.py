"""A dispatcher for the tests, with a real database, containers and S3, and a plain fleet and plain books around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from endpoint.data_plane.container_client import ContainerClient
from endpoint.data_plane.dispatcher import Dispatcher
from endpoint.data_plane.storage import Storage
from endpoint.fleet.instance import Instance
from endpoint.settings import Settings
from endpoint.state import catalog, queue
from endpoint.state.catalog import Catalog
from endpoint.state.database import Database
from endpoint.state.queue import Job, Notification, Outcome, Queue
from testing.server import TIMEOUT_S

LOOK_EVERY_S = 0.01


class StubFleet:
    def __init__(self) -> None:
        self.version = 0
        self._healthy: list[Instance] = []
        self._changed = asyncio.Event()

    def have(self, *urls: str) -> None:
        """Instances i-0, i-1 and so on."""
        parts: dict[str, Any] = {"endpoint": "e", "variant": "v", "config_name": "c", "pid": 1, "started_at": 0.0}
        self._healthy = [Instance(id=f"i-{number}", url=url, **parts) for number, url in enumerate(urls)]
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def healthy(self, endpoint: str) -> list[Instance]:
        return self._healthy if endpoint == "e" else []

    async def wait_for_change(self, since: int | None = None) -> int:
        while self.version == since:
            await self._changed.wait()
        return self.version


class StubNotifications:
    def __init__(self) -> None:
        self.told: list[tuple[Job, Outcome, bytes | None]] = []

    def wants_answer(self, outcome: Outcome, config: dict[str, Any]) -> bool:
        return bool(config["AsyncInferenceConfig"]["OutputConfig"].get("wants_answer"))

    def of(self, job: Job, outcome: Outcome, config: dict[str, Any], *, answer: bytes | None) -> Notification | None:
        self.told.append((job, outcome, answer))
        return Notification(topic="topic", message=outcome.kind)

    def wake(self) -> None:
        pass


class StubMetrics:
    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.values: dict[str, float] = {}

    def count(self, endpoint: str, variant: str, name: str, value: float = 1.0) -> None:
        assert (endpoint, variant) == ("e", "v")
        self.sums[name] += 1
        self.values[name] = value


class StubDataLog:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        """Instance and text."""

    def write(self, endpoint: str, variant: str, instance_id: str, inference_id: str, text: str) -> None:
        self.lines.append((instance_id, text))


class World:
    """Owns the database. Each `running` is a gateway's life on it."""

    def __init__(self, settings: Settings, backend: Any) -> None:
        self.settings = settings
        self.database = Database(settings.data_dir / "db", catalog.SCHEMA, queue.SCHEMA)
        self.catalog = Catalog(self.database)
        self.queue = Queue(self.database)
        self.fleet = StubFleet()
        self.storage: Any = Storage(settings, backend)
        self.notices = StubNotifications()
        self.metrics = StubMetrics()
        self.output_config = {"S3OutputPath": "s3://bucket/out"}
        self.data_log = StubDataLog()
        self.dispatcher = self._dispatcher()

    def _dispatcher(self) -> Dispatcher:
        return Dispatcher(
            self.settings,
            self.catalog,
            self.queue,
            self.fleet,
            self.storage,
            ContainerClient(self.settings),
            self.notices,
            self.metrics,
            self.data_log,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.dispatcher = self._dispatcher()
        task = asyncio.create_task(self.dispatcher.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def create(self, limit: int | None = None, **config: Any) -> None:
        """The endpoint `e`."""
        given = {} if limit is None else {"ClientConfig": {"MaxConcurrentInvocationsPerInstance": limit}}
        async_config = {"OutputConfig": self.output_config, **given}
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

    async def accept(self, told: str = "", **changes: Any) -> Job:
        """What its container shall do. By default a small inline body, a long time, and both locations."""
        name = changes.pop("name", told.partition("=")[0] or "job")
        given: dict[str, Any] = {
            "endpoint": "e",
            "variant": "v",
            "inference_id": name,
            "input_location": None,
            "body": None if "input_location" in changes else b"body",
            "content_type": None,
            "accept": None,
            "custom_attributes": told,
            "timeout_s": TIMEOUT_S,
            "ttl_s": 3600.0,
            "output_location": f"s3://bucket/out/{name}.out",
            "failure_location": f"s3://bucket/fail/{name}-error.out",
            "output_config": self.output_config,
        }
        job = await self.queue.accept(**given | changes)
        self.dispatcher.wake()
        return job

    async def until(self, question: Callable[[], object]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not question():
                await asyncio.sleep(LOOK_EVERY_S)

    async def until_done(self, count: int = 1) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while await self._count("jobs WHERE state = 'done'") < count:
                await asyncio.sleep(LOOK_EVERY_S)

    async def messages(self) -> list[str]:
        rows = await self.database.read(lambda db: db.execute("SELECT message FROM outbox ORDER BY seq").fetchall())
        return [row["message"] for row in rows]

    async def states(self) -> list[str]:
        rows = await self.database.read(lambda db: db.execute("SELECT state FROM jobs ORDER BY seq").fetchall())
        return [row["state"] for row in rows]

    async def _count(self, what: str) -> int:
        count: int = await self.database.read(lambda db: db.execute(f"SELECT count(*) FROM {what}").fetchone()[0])
        return count

    @property
    def spooled(self) -> list[Path]:
        return list((self.settings.data_dir / "answers").iterdir())


@contextlib.asynccontextmanager
async def a_world(data_dir: Path, backend: Any, **settings: Any) -> AsyncIterator[World]:
    data_dir.mkdir(exist_ok=True)
    given: dict[str, Any] = {"data_dir": data_dir, "ping_every_s": 0.01, "time_scale": 60.0}
    world = World(Settings(**given | settings), backend)
    try:
        yield world
    finally:
        world.database.close()
