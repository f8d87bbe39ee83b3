"""A child process at the other end of a socket pair, and the messages that go over it.

Messages are msgpack, each preceded by its length in bytes. The child imports `encode` and `read_frames`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import IOBase
from typing import Any

import msgspec

HEADER = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder(enc_hook=array.tobytes)


def encode(message: Any) -> bytes:
    """Return the message with its length in front, ready to write. Arrays are written as their bytes."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


def read_frames(stream: IOBase) -> Iterator[bytes]:
    """Yield the bytes of each message until the stream ends, even if it ends in the middle of one."""
    while len(header := stream.read(HEADER.size)) == HEADER.size:
        (length,) = HEADER.unpack(header)
        body = stream.read(length)
        if len(body) < length:
            return
        yield body


def python_command(module: str) -> tuple[str, ...]:
    """Return the command that runs a module with this process's Python."""
    return (sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", module)


class _Frames(asyncio.Protocol):
    """Cuts what the child sends into messages. `closed` is done when there are no more."""

    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_message = on_message
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while not self.closed.done() and len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            message = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            try:
                self._on_message(message)
            except Exception as error:
                self.closed.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


class ChildProcess:
    """Owns a process and this end of the socket pair to it. End it with `close`, `kill` and `wait`."""

    def __init__(
        self, process: subprocess.Popen[bytes], transport: asyncio.WriteTransport, closed: asyncio.Future[None]
    ) -> None:
        self.pid = process.pid
        self.closed = closed
        """Done once the child has closed its end, which is its death, or with the error of the listener."""
        self.is_open = True
        """False after `close`: nothing is sent any more."""
        self._process = process
        self._transport = transport

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        on_message: Callable[[bytes], None],
        *,
        environment: Mapping[str, str],
        files: Sequence[int] = (),
        stderr: int | None = None,
    ) -> ChildProcess:
        """Start the command with the file descriptor of its end of the pair, then `files`, as arguments.

        `on_message` is called on the event loop with each message. Raises OSError if there are no resources for a
        process or no such program.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            # Connected first: nothing can be cancelled between the process's start and its being owned.
            transport, frames = await asyncio.get_running_loop().create_connection(
                lambda: _Frames(on_message), sock=ours
            )
            inherited = (theirs.fileno(), *files)
            try:
                process = subprocess.Popen(
                    [*command, *map(str, inherited)],
                    pass_fds=inherited,
                    stdin=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,  # a Ctrl-C in the terminal reaches the server alone
                    env=environment,
                )
            except OSError:
                transport.close()
                raise
        return cls(process, transport, frames.closed)

    def send(self, message: object) -> None:
        """Send a message. Nothing happens if the connection is closed."""
        if self.is_open and not self._transport.is_closing():
            self._transport.write(encode(message))

    async def wait(self, timeout_s: float | None = None) -> int | None:
        """Return the exit status, a signal's number as a negative one; None if the child doesn't exit in time."""
        try:
            return await asyncio.to_thread(self._process.wait, timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Close this end of the pair, which asks the child to exit."""
        self.is_open = False
        self._transport.close()
