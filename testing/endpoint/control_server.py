"""The control plane alone behind a real socket, with a fleet that starts nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

from endpoint.aws.service import Service
from endpoint.control_plane.control import ControlPlane
from endpoint.settings import Settings
from endpoint.state.catalog import SCHEMA, Catalog, Endpoint
from endpoint.state.database import Database
from testing.endpoint.botocore_wire import client

T = TypeVar("T")

SERVICE = Service("sagemaker")


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


class ControlServer:
    """Must be closed. Coroutines that touch the catalog go through `run`."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.notified: list[str] = []
        self.registered: set[tuple[str, str]] = set()
        """Endpoints and variants that are scalable targets."""
        self.run(self._start(Settings(data_dir=data_dir, **settings)))
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http_thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._http_thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.sagemaker = client("sagemaker", url=self.url)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        self.sagemaker.close()
        self._http.shutdown()
        self._http.server_close()
        self._http_thread.join()
        self.database.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self, settings: Settings) -> None:
        self.database = Database(settings.data_dir / "endpoint.sqlite", SCHEMA)
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

    async def _notify(self, endpoint: str) -> None:
        self.notified.append(endpoint)

    async def _is_registered(self, endpoint: str, variant: str) -> bool:
        return (endpoint, variant) in self.registered

    async def _deregister(self, endpoint: str) -> None:
        self.registered = {target for target in self.registered if target[0] != endpoint}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers["content-length"]))
                answer = server.run(SERVICE.respond(server.control.call, "POST", self.path, headers, body))
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                # One write: no waiting for an acknowledgement.
                self._headers_buffer.append(b"\r\n" + answer.body)  # type: ignore[attr-defined]
                self.flush_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler
