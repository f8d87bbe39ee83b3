"""SageMaker's runtime API behind botocore's own client, with endpoints as rows and a container told what to answer."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

from starlette.responses import Response

from endpoint.aws.service import Service
from endpoint.aws.wire import HttpRequest
from endpoint.data_plane.container_client import ContainerClient
from endpoint.data_plane.dispatcher import Dispatcher
from endpoint.data_plane.runtime import Runtime
from endpoint.fleet.fleet import Fleet
from endpoint.fleet.instance import Instance
from endpoint.settings import Settings
from endpoint.state import catalog, queue
from endpoint.state.catalog import Catalog
from endpoint.state.database import Database
from endpoint.state.queue import Queue
from testing.endpoint.botocore_wire import client

T = TypeVar("T")

SERVICE = Service("sagemaker-runtime")
VARIANT = {"VariantName": "main", "ModelName": "model", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
PATHS = {"S3OutputPath": "s3://bucket/out", "S3FailurePath": "s3://bucket/failed"}


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Print nothing: some tests are about callers that hang up."""


class Container:
    """Answers each invocation with `status`, `headers` and `body`, once `may_answer`; hangs up if `status` is None."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.status: int | None = 200
        self.headers = {"Content-Type": "application/json"}
        self.body = b"{}"
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self._http = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        container = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                container.asked.append((self.path, headers, self.rfile.read(int(headers.get("content-length", 0)))))
                container.may_answer.wait()
                if container.status is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(container.status)
                for name, value in (container.headers | {"Content-Length": str(len(container.body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(container.body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class StubFleet(Fleet):
    def __init__(self) -> None:
        self.instances: list[Instance] = []

    def healthy(self, endpoint: str) -> list[Instance]:
        return [instance for instance in self.instances if instance.endpoint == endpoint]


class StubDispatcher(Dispatcher):
    def __init__(self) -> None:
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1


class RuntimePort:
    """Owns a Runtime, its event loop and its container. Must be closed."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.fleet = StubFleet()
        self.dispatcher = StubDispatcher()
        self.container = Container()
        self._run(self._start(Settings(data_dir=data_dir, **settings)))
        self.client = client("sagemaker-runtime", self._respond, parameter_validation=False)

    def close(self) -> None:
        self._run(self._containers.close())
        self.container.close()
        self.client.close()
        self.database.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def endpoint(self, name: str = "e", *, output: dict[str, Any] | None = PATHS, status: str = "InService") -> None:
        """Create an endpoint with an instance; not an asynchronous one if `output` is None."""
        config: dict[str, Any] = {"EndpointConfigName": name, "ProductionVariants": [VARIANT]}
        if output is not None:
            config["AsyncInferenceConfig"] = {"OutputConfig": output}
        state = {
            "status": status,
            "failure_reason": None,
            "config_name": name,
            "target_config_name": None,
            "desired": 1,
            "current": 1,
            "deployed": {name: {"config": config, "model": {}}},
        }
        self._run(self.catalog.create("endpoint", name, f"arn:{name}", {}, {}, state))
        self.fleet.instances.append(Instance(id="i-0", endpoint=name, variant="main", url=self.container.url))

    def jobs(self) -> list[dict[str, Any]]:
        """Return the queue's rows in the order of acceptance."""
        rows = self._run(self.database.read(lambda db: db.execute("SELECT * FROM jobs ORDER BY seq").fetchall()))
        return [dict(row) for row in rows]

    async def _start(self, settings: Settings) -> None:
        self.database = Database(settings.data_dir / "endpoint.sqlite", catalog.SCHEMA, queue.SCHEMA)
        self.catalog = Catalog(self.database)
        self._containers = ContainerClient()
        self._runtime = Runtime(
            settings, self.catalog, Queue(self.database), self.fleet, self.dispatcher, self._containers
        )

    def _respond(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        request = HttpRequest(method=method, path=path, headers=headers, body=body)
        return self._run(SERVICE.respond(self._runtime.call, request))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)
