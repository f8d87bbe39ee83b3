"""A container in a thread that does what each request's X-Amzn-SageMaker-Custom-Attributes tells it, good or bad.

`status=N` and `type=T` shape the answer, which is the request's body unless `size=N` wants so many bytes. Alone:
`hold` (answers when `let_go` is called), `hang_up`, `reset`, `half` (of the body promised), `chunked`, `no_length`,
`long_headers`, `long_line`, `garbage`, `early` (413, the body unread), `slow` (headers, then nothing), `redirect`,
`gzip`, `deaf` (reads nothing, says nothing).
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

CHUNK = 1 << 16


@dataclass(frozen=True)
class Seen:
    headers: dict[str, str]
    """Values by lowercase name."""
    size: int
    digest: str
    body: bytes
    """First bytes of the body."""
    connection: int


class FaultyContainer:
    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.hung_up_on = threading.Semaphore(0)
        """Counts the connections that the other side ended before it was answered."""
        self.came = threading.Semaphore(0)
        """Counts the requests that were read."""
        self.most_at_once = 0
        self._at_once = 0
        self._may_answer = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.let_go(1000)
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def let_go(self, count: int = 1) -> None:
        """Let `count` held requests be answered."""
        self._may_answer.release(count)

    def wait_to_answer(self) -> None:
        self._may_answer.acquire()

    @contextlib.contextmanager
    def inside(self, seen: Seen) -> Iterator[None]:
        with self._lock:
            self.seen.append(seen)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        self.came.release()
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1


def _handler(container: FaultyContainer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, b"redirected", {})

        def do_POST(self) -> None:
            assert self.path == "/invocations"
            said = self.headers.get("X-Amzn-SageMaker-Custom-Attributes", "")
            told = dict(part.partition("=")[::2] for part in said.split())
            if "early" in told:
                self._answer(413, b"too big", {})
                self._wait_for_end()
                return
            if "deaf" in told:
                container.came.release()
                container.wait_to_answer()
                self._wait_for_end()
                return
            seen = self._read()
            if seen is None:
                container.hung_up_on.release()
                return
            with container.inside(seen):
                self._obey(told, seen)

        def _read(self) -> Seen | None:
            length, digest, first = int(self.headers["Content-Length"]), hashlib.sha256(), b""
            left = length
            while left:
                try:
                    data = self.rfile.read(min(left, CHUNK))
                except ConnectionError:
                    data = b""
                if not data:
                    return None
                left -= len(data)
                first += data if len(first) < CHUNK else b""
                digest.update(data)
            headers = {name.lower(): value for name, value in self.headers.items()}
            return Seen(headers, length, digest.hexdigest(), first, self.client_address[1])

        def _obey(self, told: dict[str, str], seen: Seen) -> None:
            fault = getattr(self, f"_{next(iter(told), '')}", None)
            if fault is not None:
                fault()
                return
            if "hold" in told:
                container.wait_to_answer()
            body = seen.body if "size" not in told else b"x" * int(told["size"])
            self._answer(int(told.get("status", 200)), body, {"Content-Type": told.get("type", "text/plain")})

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            with contextlib.suppress(ConnectionError):
                self.send_response_only(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        def _say(self, text: bytes) -> None:
            self.close_connection = True
            self.wfile.write(text)

        def _hang_up(self) -> None:
            self.close_connection = True

        def _reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def _half(self) -> None:
            self._say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 50)

        def _chunked(self) -> None:
            self._say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

        def _no_length(self) -> None:
            self._say(b"HTTP/1.1 200 OK\r\n\r\nto the end")

        def _long_headers(self) -> None:
            self._answer(200, b"", {f"X-{number}": "v" * 400 for number in range(11)})

        def _long_line(self) -> None:
            self._answer(200, b"", {"X": "v" * 1_000_000})

        def _garbage(self) -> None:
            self._say(b"SSH-2.0-none\r\n\r\n")

        def _slow(self) -> None:
            self._say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nthe begin")
            self._wait_for_end()

        def _redirect(self) -> None:
            self._answer(302, b"", {"Location": "/elsewhere"})

        def _gzip(self) -> None:
            self._answer(200, b"no gzip at all", {"Content-Encoding": "gzip"})

        def _never(self) -> None:
            self._wait_for_end()

        def _wait_for_end(self) -> None:
            self.close_connection = True
            with contextlib.suppress(ConnectionError):
                while self.connection.recv(CHUNK):
                    pass
            container.hung_up_on.release()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
