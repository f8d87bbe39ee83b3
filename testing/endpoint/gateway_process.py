"""A gateway in a process of its own, with its backend and with handlers that return what they were given."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from botocore.config import Config
from starlette.responses import Response

from endpoint.aws.errors import not_implemented
from endpoint.backend.backend import Backend
from endpoint.backend.emulator import read_running
from endpoint.gateway.gateway import Gateway, make_server
from endpoint.gateway.monitoring import Monitoring
from endpoint.gateway.request import Request
from endpoint.settings import Settings
from testing import ROOT
from testing.endpoint.botocore_wire import session
from testing.server import eventually, free_port


class GatewayProcess:
    def __init__(self, data_dir: Path, port: int = 0, backend: str = "embedded") -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data_dir = data_dir
        self._backend = backend
        self._clients: list[Any] = []
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.data_dir), str(self.port), self._backend],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        eventually(self._is_up, within_s=20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Kill it and the backend."""
        for client in self._clients:
            client.close()
        self.kill()
        if pid := self.backend_pid:
            os.kill(pid, signal.SIGKILL)

    @property
    def backend_pid(self) -> int | None:
        running = read_running(self.data_dir / "backend")
        return running.pid if running and running.process.is_alive else None

    @property
    def backend_url(self) -> str:
        running = read_running(self.data_dir / "backend")
        assert running is not None
        return f"http://127.0.0.1:{running.port}"

    def client(
        self, service: str, key: str = "test", protocol: str | None = None, token: str | None = None, **config: Any
    ) -> Any:
        client = session(protocol, key, token).client(service, endpoint_url=self.url, config=Config(**config))
        self._clients.append(client)
        return client

    def _is_up(self) -> bool:
        assert self.process.poll() is None, "the gateway has ended"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
            return True
        return False


@contextlib.contextmanager
def gateway_process(data_dir: Path, **options: Any) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(data_dir, **options)
    try:
        yield gateway
    finally:
        gateway.close()


async def tell_control(request: Request) -> Response:
    told = {
        "EndpointConfigs": [],
        "NextToken": f"{request.method} {request.path} {(await request.body(1000)).decode()}",
    }
    return Response(json.dumps(told), headers={"Content-Type": "application/x-amz-json-1.1"})


async def tell_runtime(request: Request) -> Response:
    size = len(await request.body())
    if request.headers.get("x-amzn-sagemaker-custom-attributes") == "raise":
        raise ValueError("as asked")
    return Response(f"{size}", headers={"x-Amzn-Invoked-Production-Variant": f"{request.path}?{request.query}"})


class Alarms:
    """Remembers the operations of alarms and the metric data that it gets; DescribeAlarms tells them."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, dict[str, Any]]] = []

    async def call(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        if operation == "DescribeAlarms":
            return {"MetricAlarms": [], "NextToken": json.dumps(self._calls)}
        if operation == "PutCompositeAlarm":
            raise not_implemented(operation)
        self._calls.append((operation, parameters))
        return {"Tags": []} if operation == "ListTagsForResource" else {}

    def record(self, parameters: dict[str, Any]) -> None:
        self._calls.append(("record", parameters))


async def main(data_dir: str, port: str, backend_url: str) -> None:
    settings = Settings(data_dir=Path(data_dir), port=int(port), backend=backend_url)
    backend = Backend(settings)
    await backend.start()
    watch = asyncio.create_task(backend.watch())
    alarms = Alarms()
    routes = {
        "sagemaker": tell_control,
        "sagemaker-runtime": tell_runtime,
        "monitoring": Monitoring(alarms.call, alarms.record).handle,
    }
    app = Gateway(settings, backend, routes)
    with socket.create_server((settings.host, settings.port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as the socket of `up` has it
        await make_server(app).serve(sockets=[sock])
    watch.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
