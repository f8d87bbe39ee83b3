"""A proxy in front of the emulated S3 that fails on demand."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import threading
import urllib.parse
from typing import Literal

State = Literal["well", "refuses", "errors", "slow", "cuts"]
"""How it behaves. `refuses`: hangs up at once. `errors`: answers 503 and 500. `slow`: takes longer than a client waits.
`cuts`: forwards the request and hangs up instead of answering, so the client can't know whether it was done."""
SLOW_S = 20.0
_ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>broken</Message></Error>"


class BrokenS3:
    """The proxy; it owns its port and threads until `close`."""

    def __init__(self, url: str) -> None:
        host, port = urllib.parse.urlsplit(url).netloc.split(":")
        self.backend = (host, int(port))
        self.state: State = "well"
        self.over = threading.Event()
        self.broken = 0
        """Number of requests that got no proper answer."""
        owner = self

        class Handler(_Handler):
            front = owner

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    front: BrokenS3

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _answer(self) -> None:
        body = self._body()
        state = self.front.state
        if state != "well":
            self.front.broken += 1
        if state == "slow":
            self.front.over.wait(SLOW_S)
        if state == "refuses":
            self._hang_up()
        elif state == "errors":
            is_busy = self.front.broken % 2 == 0
            self._send(503 if is_busy else 500, {}, _ERROR % (b"SlowDown" if is_busy else b"InternalError"))
        else:
            self._pass_on(body, is_to_be_cut=state == "cuts")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _pass_on(self, body: bytes, *, is_to_be_cut: bool) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
        backend = http.client.HTTPConnection(*self.front.backend, timeout=60)
        try:
            backend.request(self.command, self.path, body, headers)
            response = backend.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException):
            self._hang_up()
            return
        finally:
            backend.close()
        if is_to_be_cut:
            self._hang_up()
            return
        self._send(response.status, dict(response.getheaders()), answer)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        with contextlib.suppress(OSError):  # the client has stopped waiting
            self.send_response(status)
            length = str(len(body))
            for name, value in headers.items():
                if name.lower() == "content-length":
                    length = value  # the answer to HEAD has the object's length and no body
                elif name.lower() not in _HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "date", "server"})
_OWN = frozenset({"connection", "expect", "transfer-encoding", "content-length"})
