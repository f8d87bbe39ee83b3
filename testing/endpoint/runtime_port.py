"""The data plane's front behind botocore's own client, with endpoints as rows and a container told what to answer."""

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
from endpoint.data_plane.container_client import ContainerClient
from endpoint.data_plane.runtime import Runtime
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
        """A caller that hung up is what some tests are about."""


class Container:
    """Answers each invocation with `status`, `headers` and `body`, once `may_answer`. Status None: hangs up instead."""

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


class RuntimePort:
    """Is the fleet and the dispatcher of its Runtime, too. `close` it."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.wakes = 0
        self.instances: list[Instance] = []
        self.container = Container()
        self._run(self._start(Settings(data_dir=data_dir, **settings)))
        self.client = client("sagemaker-runtime", self._respond, parameter_validation=False)

    def close(self) -> None:
        self._run(self._invoker.close())
        self.container.close()
        self.client.close()
        self.database.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def endpoint(self, name: str = "e", *, output: dict[str, Any] | None = PATHS, status: str = "InService") -> None:
        """With an instance; not asynchronous if `output` is None."""
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
        self.instances.append(
            Instance(
                id="i-0", endpoint=name, variant="main", config_name=name, url=self.container.url, pid=1, started_at=0.0
            )
        )

    def jobs(self) -> list[dict[str, Any]]:
        """The queue's rows, first accepted first."""
        rows = self._run(self.database.read(lambda db: db.execute("SELECT * FROM jobs ORDER BY seq").fetchall()))
        return [dict(row) for row in rows]

    # What Runtime asks of a fleet and of a dispatcher

    def healthy(self, endpoint: str) -> list[Instance]:
        return [instance for instance in self.instances if instance.endpoint == endpoint]

    def wake(self) -> None:
        self.wakes += 1

    async def _start(self, settings: Settings) -> None:
        self.database = Database(settings.data_dir / "endpoint.sqlite", catalog.SCHEMA, queue.SCHEMA)
        self.catalog = Catalog(self.database)
        self._invoker = ContainerClient(settings)
        self._runtime = Runtime(settings, self.catalog, Queue(self.database), self, self, self._invoker)

    def _respond(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        return self._run(SERVICE.respond(self._runtime.call, method, path, headers, body))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)
