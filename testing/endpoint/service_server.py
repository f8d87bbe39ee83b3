"""One service's operations alone behind a real socket, on an event loop of their own, with a boto3 client."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from starlette.responses import Response

from endpoint.aws.service import Call, Service
from endpoint.aws.wire import HttpRequest
from endpoint.settings import Settings
from endpoint.state.database import Database
from testing.endpoint.botocore_wire import client

T = TypeVar("T")


@cache
def _service(name: str) -> Service:
    return Service(name)


class ServiceServer(ABC):
    """Must be closed. Coroutines that touch its parts go through `run`."""

    service: ClassVar[str]
    """Name of the service in botocore."""
    schemas: ClassVar[tuple[str, ...]]

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._call = self.run(self._open(Settings(data_dir=data_dir, **settings)))
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http_thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._http_thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.client = client(self.service, url=self.url)

    @abstractmethod
    async def start(self, settings: Settings) -> Call:
        """Make the parts over `database`, and return what does the operations."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        self.client.close()
        self._http.shutdown()
        self._http.server_close()
        self._http_thread.join()
        self.database.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def respond(self, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Answer a POST as the server does."""
        request = HttpRequest(method="POST", path=path, headers=headers, body=body)
        return await _service(self.service).respond(self._call, request)

    async def _open(self, settings: Settings) -> Call:
        self.database = Database(settings.data_dir / "endpoint.sqlite", *self.schemas)
        return await self.start(settings)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers["content-length"]))
                answer = server.run(server.respond(self.path, headers, body))
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                # One write: no waiting for an acknowledgement.
                self._headers_buffer.append(b"\r\n" + answer.body)  # type: ignore[attr-defined]
                self.flush_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler
