"""A proxy in front of an S3 that fails as a test says: one fault per request, then it only forwards."""

from __future__ import annotations

import http.client
import threading
from collections import deque
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["500", "503", "cut", "lost", "slow", "short", "conflict", "none"]
"""Kind of fault. cut: the connection ends before anything is done. lost: the request is done, then the connection
ends. slow: no answer until `close`. short: the end of the answer is missing. conflict: S3's 409 for a conditional
write beside another one."""

_ANSWERS = {"500": (500, "InternalError"), "503": (503, "SlowDown"), "conflict": (409, "ConditionalRequestConflict")}


class FaultyS3:
    """The proxy, with the faults to come and a list of the requests that were forwarded. `close` ends it."""

    def __init__(self, port: int) -> None:
        self.faults: deque[Fault] = deque()
        self.forwarded: list[str] = []
        self._released = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                fault = proxy.faults.popleft() if proxy.faults else "none"
                if fault in _ANSWERS:
                    return self._refuse(*_ANSWERS[fault])
                if fault == "slow":
                    proxy._released.wait()
                if fault in ("slow", "cut"):
                    self.close_connection = True
                    return None
                return self._forward(body, fault)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

            def _refuse(self, status: int, code: str) -> None:
                body = f"<Error><Code>{code}</Code><Message>as the test says</Message></Error>".encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _forward(self, body: bytes, fault: str) -> None:
                backend = http.client.HTTPConnection("127.0.0.1", port)
                try:
                    backend.request(self.command, self.path, body, dict(self.headers))
                    answer = backend.getresponse()
                    data = answer.read()
                finally:
                    backend.close()
                proxy.forwarded.append(f"{self.command} {self.path}")
                if fault == "lost":
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                        self.send_header(name, value)
                self.send_header("content-length", answer.getheader("content-length") or str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if fault == "short" else data)
                self.close_connection = fault == "short"

            def log_message(self, *arguments: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def will(self, faults: Iterable[Fault]) -> None:
        self.faults.extend(faults)

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.socket.close()
