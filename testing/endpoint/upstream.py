"""A backend whose responses a test writes to its sockets."""

from __future__ import annotations

import socket

from testing.server import TIMEOUT_S


class Upstream:
    """A backend whose responses a test writes to its sockets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.head = b""

    def accept(self) -> socket.socket:
        """Accept a connection and read `head`."""
        sock, _ = self._listener.accept()
        sock.settimeout(TIMEOUT_S)
        self.head = b""
        while b"\r\n\r\n" not in self.head:
            self.head += sock.recv(65536)
        return sock

    def greet(self) -> None:
        """Answer the request of `Backend.start`."""
        with self.accept() as sock:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self) -> None:
        self._listener.close()
