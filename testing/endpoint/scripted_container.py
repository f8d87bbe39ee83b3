"""A container that does what the custom attributes of a request tell it. Run as Settings.serve, never imported.

`do=`: echo, status:CODE, hang, hang-up, half (the body stops in the middle), chunked, endless (no Content-Length and no
chunks), headers-of:BYTES, die (the process ends), die-once:FILE (and makes the file), wait:FILE (until the file exists,
then echo), headers-seen.
It appends a line to the file CONTAINER_SAYS for each request that it takes, and for each one whose caller hung up.
At SIGTERM it ends. If CONTAINER_LAST is set (`bucket/key`), it first asks for an invocation of the endpoint `e`, and
puts the status that it gets to S3.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SAYS = Path(os.environ.get("CONTAINER_SAYS", os.devnull))


def say(text: str) -> None:
    with SAYS.open("a") as file:
        file.write(text + "\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, b"")

    def do_POST(self) -> None:
        told = self.headers.get("X-Amzn-SageMaker-Custom-Attributes", "do=echo")
        what, _, parameter = told.removeprefix("do=").partition(":")
        left = int(self.headers.get("Content-Length", 0))
        body = bytearray()
        while left and (piece := self.rfile.read(min(left, 1 << 20))):
            left -= len(piece)
            body += piece
        say(f"took {told}")
        getattr(self, what.replace("-", "_"))(parameter, bytes(body))

    # The commands

    def echo(self, _: str, body: bytes) -> None:
        self.answer(200, body, {"Content-Type": self.headers.get("Content-Type", "none/given")})

    def headers_seen(self, *_: object) -> None:
        self.answer(200, json.dumps({name.lower(): value for name, value in self.headers.items()}).encode())

    def status(self, code: str, body: bytes) -> None:
        self.answer(int(code), b"the container says why: " + body)

    def hang(self, *_: object) -> None:
        self.wait_for(lambda: False)

    def wait(self, path: str, body: bytes) -> None:
        if self.wait_for(Path(path).exists):
            self.echo("", body)

    def hang_up(self, *_: object) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def half(self, *_: object) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 500)
        self.hang_up()

    def chunked(self, *_: object) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nhello\r\n0\r\n\r\n")

    def endless(self, *_: object) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"hello")
        self.hang_up()

    def headers_of(self, size: str, *_: object) -> None:
        self.answer(200, b"ok", {"X-Long": "x" * int(size)})

    def die(self, *_: object) -> None:
        os._exit(7)

    def die_once(self, path: str, body: bytes) -> None:
        if not Path(path).exists():
            Path(path).touch()
            self.die()
        self.echo("", body)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "text/plain", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def wait_for(self, question: object) -> bool:
        """Return True once `question` is answered with yes, or False if the caller hangs up before."""
        assert callable(question)
        while not question():
            if select.select([self.connection], [], [], 0.02)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                say("the caller hung up")
                self.close_connection = True
                return False
        return True

    def log_message(self, *_: object) -> None:
        pass


def end(*_: object) -> None:
    if last := os.environ.get("CONTAINER_LAST"):
        url, status = os.environ["AWS_ENDPOINT_URL"], 0
        try:
            urllib.request.urlopen(f"{url}/endpoints/e/async-invocations", b"{}", timeout=10).close()
        except urllib.error.HTTPError as error:
            status = error.code
        put = urllib.request.Request(f"{url}/{last}", str(status).encode(), method="PUT")
        urllib.request.urlopen(put, timeout=10).close()
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGTERM, end)
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
