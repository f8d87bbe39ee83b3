"""Clients that send what no library would, on a bare socket; none waits longer than a bound."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .request import Request

Answer = tuple[int, bytes]


class Unexpected(Exception):
    """The server did something wrong. The message has no text of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server's port, a right request, and the longest that anything may take."""

    port: int
    request: Request
    bound_s: float

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=self.bound_s)

    def head(self, *lines: str) -> bytes:
        named = [f"{name}: {value}" for name, value in self.request.headers.items()]
        return "\r\n".join([f"POST {self.request.path} HTTP/1.1", "Host: soak", *named, *lines, "", ""]).encode()

    def whole(self) -> bytes:
        return self.head(f"Content-Length: {len(self.request.body)}") + self.request.body


def _read_to_end(connection: socket.socket) -> bytes:
    """Read until the server closes. A reset counts as an end; silence beyond the bound doesn't."""
    received = b""
    try:
        while chunk := connection.recv(1 << 16):
            received += chunk
    except ConnectionError:
        pass
    except TimeoutError:
        raise Unexpected("no answer and no end within the bound") from None
    return received


def _read_answer(connection: socket.socket) -> Answer:
    """Read one HTTP answer."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        return response.status, response.read()
    except TimeoutError:
        raise Unexpected("no answer within the bound") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise Unexpected(f"a right request was answered with {type(error).__name__}") from None


def _check_refused(connection: socket.socket) -> None:
    """Check that the answer is a 4xx or the end of the connection, never a 200."""
    said = _read_to_end(connection)
    if said and not said.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")):
        raise Unexpected(f"a malformed request was answered with {said[9:12]!r}")


def _send(connection: socket.socket, data: bytes) -> None:
    """Send as much as the server accepts."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def send_half_a_head(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        connection.sendall(target.head("Content-Length: 10")[: draw.randint(1, 60)])
        time.sleep(draw.choice([0, 0, 2]))


def send_half_a_body(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        connection.sendall(target.head(f"Content-Length: {len(target.request.body) + 10}") + target.request.body)
        time.sleep(draw.choice([0, 0, 2]))


def shut_down_after_half_a_body(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        connection.sendall(target.head(f"Content-Length: {len(target.request.body) + 10}") + target.request.body)
        connection.shutdown(socket.SHUT_WR)
        _check_refused(connection)


def stop_sending(target: Target, draw: random.Random) -> None:
    """Stop sending in the head or in the body: the server must end the connection."""
    whole = target.whole()
    with target.connect() as connection:
        connection.sendall(whole[: draw.choice([20, len(whole) - 1])])
        _check_refused(connection)


def reset_while_sending(target: Target, draw: random.Random) -> None:
    connection = target.connect()
    whole = target.whole()
    connection.sendall(whole[: draw.randint(1, len(whole))])
    time.sleep(draw.choice([0, 0.01, 0.1]))
    _reset(connection)


def leave_while_waiting(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        connection.sendall(target.whole())
        time.sleep(draw.random() * 0.3)


def reset_while_reading(target: Target, draw: random.Random) -> None:
    connection = target.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.sendall(target.whole() * 3)
    connection.recv(20)
    _reset(connection)


def send_slowly(target: Target, draw: random.Random) -> Answer:
    """Send a right request in small pieces."""
    whole = target.whole()
    with target.connect() as connection:
        piece = max(1, len(whole) // 30)
        for start in range(0, len(whole), piece):
            connection.sendall(whole[start : start + piece])
            time.sleep(0.02)
        return _read_answer(connection)


def send_chunks(target: Target, draw: random.Random) -> Answer:
    body, cut = target.request.body, draw.randint(1, 50)
    chunks = [body[start : start + cut] for start in range(0, len(body), cut)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    with target.connect() as connection:
        connection.sendall(target.head("Transfer-Encoding: chunked") + framed)
        return _read_answer(connection)


def send_bad_chunks(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        good = b"5\r\nhello\r\n" * draw.randint(0, 2)
        bad = draw.choice([b"zz\r\n", b"-1\r\n", b"5\r\nhello", b"ffffffffffffffffff\r\n", b"\0\0\0\0\r\n"])
        _send(connection, target.head("Transfer-Encoding: chunked") + good + bad + draw.randbytes(40))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        _check_refused(connection)


def flood_headers(target: Target, draw: random.Random) -> None:
    """Send more headers than a server should hold: it refuses them or cuts the connection."""
    with target.connect() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(target.head()[:-2])
            for number in range(draw.choice([2_000, 20_000])):
                connection.sendall(f"X-Flood-{number}: {'a' * draw.choice([10, 500])}\r\n".encode())
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        _check_refused(connection)


def send_a_long_line(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        _send(connection, b"POST /" + b"a" * draw.choice([70_000, 1_000_000]))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        _check_refused(connection)


def send_noise(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        _send(connection, draw.randbytes(draw.randint(1, 3000)))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        _check_refused(connection)


def contradict_lengths(target: Target, draw: random.Random) -> None:
    lengths = draw.choice(
        [
            ("Content-Length: 5", "Content-Length: 6"),
            ("Content-Length: -1",),
            ("Content-Length: five",),
            ("Content-Length: 99999999999999999999999",),
            ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ]
    )
    with target.connect() as connection:
        _send(connection, target.head(*lengths) + b"hello")
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        _check_refused(connection)


def pipeline(target: Target, draw: random.Random) -> Answer:
    """Send several requests at once, which are answered in order. Returns the last answer."""
    count = draw.randint(2, 5)
    with target.connect() as connection:
        connection.sendall(target.whole() * count)
        answers = _read_answers(connection, count)
    stable = [target.request.stable_answer(body) for status, body in answers if status == 200]
    if any(answer != stable[0] for answer in stable):
        raise Unexpected("the same request, pipelined, had different answers")
    return next((answer for answer in answers if answer[0] != 200), answers[-1])


def _read_answers(connection: socket.socket, count: int) -> list[Answer]:
    """Read the answers through one buffer, as `HTTPResponse` reads ahead."""
    with connection.makefile("rb") as stream:
        shared: Any = type("Shared", (), {"makefile": lambda self, mode: _Unclosed(stream)})()
        return [_read_answer(shared) for _ in range(count)]


class _Unclosed:
    """A stream that outlives the response that reads from it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        pass


Attack = Callable[[Target, random.Random], Answer | None]

ATTACKS: dict[str, Attack] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        send_half_a_head,
        send_half_a_body,
        shut_down_after_half_a_body,
        stop_sending,
        reset_while_sending,
        leave_while_waiting,
        reset_while_reading,
        send_slowly,
        send_chunks,
        send_bad_chunks,
        flood_headers,
        send_a_long_line,
        send_noise,
        contradict_lengths,
        pipeline,
    )
}
"""Attacks by name. One that returns an answer has sent a right request, whose answer must be right."""
