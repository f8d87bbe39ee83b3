"""A fleet with real processes for the tests, asked in few words for what control plane and dispatcher want of it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from endpoint.fleet.fleet import SCHEMA, Fleet
from endpoint.fleet.instance import Instance
from endpoint.fleet.runners.make_runner import make_runner
from endpoint.settings import Settings
from endpoint.state.catalog import SCHEMA as CATALOG
from endpoint.state.catalog import Catalog, Endpoint, NotFound
from endpoint.state.database import Database
from testing.server import TIMEOUT_S

MISBEHAVING = str(Path(__file__).with_name("misbehaving_container.py"))


class DeadBackend:
    """A backend that does not answer."""

    def client(self, service: str) -> Any:
        from botocore.exceptions import EndpointConnectionError

        raise EndpointConnectionError(endpoint_url=service)


def quick(data_dir: Path, **changes: Any) -> Settings:
    """Return settings with which pings are quick, and a window of 60 s is a second."""
    values: dict[str, Any] = {
        "data_dir": data_dir,
        "serve": (sys.executable, MISBEHAVING),
        "ping_every_s": 0.05,
        "time_scale": 60.0,
        "min_window_s": 0.0,
    }
    return Settings(**values | changes)


class World:
    """Owns database and fleet. `control` is the directory with the files that make containers ill."""

    def __init__(self, settings: Settings, backend: Any) -> None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self.control = settings.data_dir / "control"
        self.control.mkdir(exist_ok=True)
        self.database = Database(settings.data_dir / "db", CATALOG, SCHEMA)
        self.catalog = Catalog(self.database)
        self.said: list[str] = []
        self.runner = make_runner(settings.runner, settings)
        self.fleet = Fleet(settings, self.database, self.catalog, backend, self.said.append, self.runner)

    async def create(self, name: str, count: int = 1, **parts: Any) -> None:
        """Create an endpoint of config `first`."""
        state = {
            "status": "Creating",
            "failure_reason": None,
            "config_name": "first",
            "target_config_name": None,
            "desired": count,
            "current": 0,
            "deployed": {"first": self.deployment(**parts)},
        }
        await self.catalog.create("endpoint", name, f"arn:{name}", {}, {}, state)
        self.fleet.wake()

    async def change(self, name: str, **changes: Any) -> None:
        await self.catalog.change_endpoint(name, **changes)
        self.fleet.wake()

    async def update(self, name: str, config: str, count: int = 1, **parts: Any) -> None:
        deployed = (await self.catalog.endpoint(name)).deployed | {config: self.deployment(**parts)}
        await self.change(name, status="Updating", target_config_name=config, desired=count, deployed=deployed)

    def deployment(
        self, environment: dict[str, str] | None = None, container: Any = None, variant: Any = None, **model: Any
    ) -> Any:
        variables = {"CONTROL": str(self.control), **(environment or {})}
        window = {"ContainerStartupHealthCheckTimeoutInSeconds": 1800}
        return {
            "config": {
                "ProductionVariants": [{"VariantName": "AllTraffic", "ModelName": "m", **window, **(variant or {})}]
            },
            "model": {"PrimaryContainer": {"Image": "i", "Environment": variables, **(container or {})}, **model},
        }

    async def until(self, name: str, question: Callable[[Endpoint], object]) -> Endpoint:
        """Return the endpoint, once the answer is true."""
        async with asyncio.timeout(TIMEOUT_S):
            while not question(endpoint := await self.catalog.endpoint(name)):
                await asyncio.sleep(0.01)
        return endpoint

    async def until_status(self, name: str, status: str) -> Endpoint:
        return await self.until(name, lambda endpoint: endpoint.status == status)

    async def until_gone(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            await self.until(name, lambda _: False)

    async def row(self, instance: Instance) -> dict[str, Any]:
        """Return what the database has of an instance."""
        row = await self.database.read(
            lambda db: db.execute("SELECT * FROM instances WHERE id = ?", (instance.id,)).fetchone()
        )
        return dict(row)

    async def pids(self, instances: list[Instance]) -> list[int]:
        return [(await self.row(instance))["pid"] for instance in instances]

    async def until_healthy(self, name: str, question: Callable[[list[Instance]], object]) -> list[Instance]:
        async with asyncio.timeout(TIMEOUT_S):
            version = self.fleet.version
            while not question(instances := self.fleet.healthy(name)):
                version = await self.fleet.wait_for_change(version)
        return instances


@contextlib.asynccontextmanager
async def a_world(settings: Settings, backend: Any = None) -> AsyncIterator[World]:
    world = World(settings, backend or DeadBackend())
    bridge = await world.runner.open()
    running = asyncio.create_task(world.fleet.run())
    try:
        yield world
    finally:
        await world.fleet.stop_all()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        world.database.close()
        if bridge is not None:
            bridge.sock.close()
