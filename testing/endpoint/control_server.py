"""The control plane alone behind a real socket, with a fleet that starts nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from endpoint.aws.service import Call
from endpoint.control_plane.control import ControlPlane
from endpoint.settings import Settings
from endpoint.state.catalog import SCHEMA, Catalog, Endpoint
from testing.endpoint.service_server import ServiceServer


class StubFleet:
    """Brings every endpoint to its next status as a healthy fleet would: when woken if `is_quick`, else by `settle`."""

    def __init__(self, catalog: Catalog) -> None:
        self.is_quick = True
        self.wakes = 0
        self._catalog = catalog
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        self.wakes += 1
        if self.is_quick:
            task = asyncio.get_running_loop().create_task(self.settle())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        for endpoint in await self._catalog.endpoints():
            await self._settle(endpoint)

    async def _settle(self, endpoint: Endpoint) -> None:
        if endpoint.status == "Deleting":
            await self._catalog.delete("endpoint", endpoint.name)
        elif endpoint.status in ("Creating", "Updating"):
            await self._catalog.change_endpoint(
                endpoint.name,
                status="InService",
                config_name=endpoint.target_config_name or endpoint.config_name,
                target_config_name=None,
                current=endpoint.desired,
            )


class ControlServer(ServiceServer):
    """Must be closed. Coroutines that touch the catalog go through `run`."""

    service = "sagemaker"
    schemas = (SCHEMA,)

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self.notified: list[str] = []
        self.registered: set[tuple[str, str]] = set()
        """Endpoints and variants that are scalable targets."""
        self.registered_next: set[tuple[str, str]] = set()
        """Targets that are registered as soon as others have been deregistered."""
        super().__init__(data_dir, **settings)
        self.sagemaker = self.client

    async def start(self, settings: Settings) -> Call:
        self.catalog = Catalog(self.database)
        self.fleet = StubFleet(self.catalog)
        self.control = ControlPlane(
            settings,
            self.catalog,
            self.fleet.wake,
            self._notify,
            is_registered=self._is_registered,
            deregister=self._deregister,
        )
        return self.control.call

    async def _notify(self, endpoint: str) -> None:
        self.notified.append(endpoint)

    async def _is_registered(self, endpoint: str, variant: str) -> bool:
        return (endpoint, variant) in self.registered

    async def _deregister(self, endpoint: str) -> None:
        self.registered = {target for target in self.registered if target[0] != endpoint} | self.registered_next
        self.registered_next = set()
