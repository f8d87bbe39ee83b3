"""Clients that send what no library would: on a bare socket, and never patient for longer than a bound."""

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

from .request import Question

Answer = tuple[int, bytes]


class Unexpected(Exception):
    """The server did what it must not. The message says what, without a request's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to, what a right request is, and how long anything may take."""

    port: int
    question: Question
    bound_s: float

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=self.bound_s)

    def head(self, *lines: str) -> bytes:
        named = [f"{name}: {value}" for name, value in self.question.headers.items()]
        return "\r\n".join([f"POST {self.question.path} HTTP/1.1", "Host: soak", *named, *lines, "", ""]).encode()

    def whole(self) -> bytes:
        return self.head(f"Content-Length: {len(self.question.body)}") + self.question.body


def _rest(connection: socket.socket) -> bytes:
    """All that the server still says. A reset is an end, too; silence beyond the bound is not."""
    said = b""
    try:
        while chunk := connection.recv(1 << 16):
            said += chunk
    except ConnectionError:
        pass
    except TimeoutError:
        raise Unexpected("no answer and no end within the bound") from None
    return said


def _answer(connection: socket.socket) -> Answer:
    """One answer, as HTTP has it."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        return response.status, response.read()
    except TimeoutError:
        raise Unexpected("no answer within the bound") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise Unexpected(f"a right request was answered with {type(error).__name__}") from None


def _refused(connection: socket.socket) -> None:
    """What is wrong is answered with a 4xx or the end of the connection, never with a 200."""
    said = _rest(connection)
    if said and not said.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")):
        raise Unexpected(f"a malformed request was answered with {said[9:12]!r}")


def _send(connection: socket.socket, data: bytes) -> None:
    """As far as the server lets it."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def half_a_head(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        connection.sendall(target.head("Content-Length: 10")[: draw.randint(1, 60)])
        time.sleep(draw.choice([0, 0, 2]))


def half_a_body(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        connection.sendall(target.head(f"Content-Length: {len(target.question.body) + 10}") + target.question.body)
        time.sleep(draw.choice([0, 0, 2]))


def half_a_body_then_shut(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        connection.sendall(target.head(f"Content-Length: {len(target.question.body) + 10}") + target.question.body)
        connection.shutdown(socket.SHUT_WR)
        _refused(connection)


def stands_still(target: Target, draw: random.Random) -> None:
    """In the head or in the body: the server has to end it."""
    whole = target.whole()
    with target.connect() as connection:
        connection.sendall(whole[: draw.choice([20, len(whole) - 1])])
        _refused(connection)


def reset_in_the_middle(target: Target, draw: random.Random) -> None:
    connection = target.connect()
    whole = target.whole()
    connection.sendall(whole[: draw.randint(1, len(whole))])
    time.sleep(draw.choice([0, 0.01, 0.1]))
    _reset(connection)


def leaves_while_waiting(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        connection.sendall(target.whole())
        time.sleep(draw.random() * 0.3)


def reads_a_little_and_resets(target: Target, draw: random.Random) -> None:
    connection = target.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.sendall(target.whole() * 3)
    connection.recv(20)
    _reset(connection)


def slow_bytes(target: Target, draw: random.Random) -> Answer:
    """A right request, in small pieces."""
    whole = target.whole()
    with target.connect() as connection:
        piece = max(1, len(whole) // 30)
        for start in range(0, len(whole), piece):
            connection.sendall(whole[start : start + piece])
            time.sleep(0.02)
        return _answer(connection)


def right_chunks(target: Target, draw: random.Random) -> Answer:
    body, cut = target.question.body, draw.randint(1, 50)
    chunks = [body[start : start + cut] for start in range(0, len(body), cut)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    with target.connect() as connection:
        connection.sendall(target.head("Transfer-Encoding: chunked") + framed)
        return _answer(connection)


def chunks_of_garbage(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        good = b"5\r\nhello\r\n" * draw.randint(0, 2)
        bad = draw.choice([b"zz\r\n", b"-1\r\n", b"5\r\nhello", b"ffffffffffffffffff\r\n", b"\0\0\0\0\r\n"])
        _send(connection, target.head("Transfer-Encoding: chunked") + good + bad + draw.randbytes(40))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        _refused(connection)


def flood_of_headers(target: Target, draw: random.Random) -> None:
    """More than any server should hold: refused, or cut off while it is sent."""
    with target.connect() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(target.head()[:-2])
            for number in range(draw.choice([2_000, 20_000])):
                connection.sendall(f"X-Flood-{number}: {'a' * draw.choice([10, 500])}\r\n".encode())
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        _refused(connection)


def one_long_line(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        _send(connection, b"POST /" + b"a" * draw.choice([70_000, 1_000_000]))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        _refused(connection)


def noise(target: Target, draw: random.Random) -> None:
    with target.connect() as connection:
        _send(connection, draw.randbytes(draw.randint(1, 3000)))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        _refused(connection)


def contradicting_lengths(target: Target, draw: random.Random) -> None:
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
        _refused(connection)


def pipelined(target: Target, draw: random.Random) -> Answer:
    """Several requests at once: each has its answer, in order. The last one is handed on."""
    count = draw.randint(2, 5)
    with target.connect() as connection:
        connection.sendall(target.whole() * count)
        answers = _answers(connection, count)
    told = [target.question.told(body) for status, body in answers if status == 200]
    if any(answer != told[0] for answer in told):
        raise Unexpected("the same request, pipelined, had different answers")
    return next((answer for answer in answers if answer[0] != 200), answers[-1])


def _answers(connection: socket.socket, count: int) -> list[Answer]:
    """`HTTPResponse` reads ahead, so all of them go through one buffer."""
    with connection.makefile("rb") as stream:
        shared: Any = type("Shared", (), {"makefile": lambda self, mode: _Unclosed(stream)})()
        return [_answer(shared) for _ in range(count)]


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
        half_a_head,
        half_a_body,
        half_a_body_then_shut,
        stands_still,
        reset_in_the_middle,
        leaves_while_waiting,
        reads_a_little_and_resets,
        slow_bytes,
        right_chunks,
        chunks_of_garbage,
        flood_of_headers,
        one_long_line,
        noise,
        contradicting_lengths,
        pipelined,
    )
}
"""Those that return an answer sent a right request, whose answer is to be right."""
