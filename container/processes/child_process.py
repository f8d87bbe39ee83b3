"""A child process at the other end of a socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from container.processes.framing import HEADER, encode


def python_command(module: str) -> tuple[str, ...]:
    """Return the command that runs a module with this process's Python."""
    return (sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", module)


class ChildProcess:
    """Owns a process and this end of the socket pair to it. End it with `kill`, `wait` and `close`."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = process.pid
        self.is_open = True
        """False after `close`: nothing is sent any more."""
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        files: Sequence[int] = (),
        stderr: int | None = None,
    ) -> ChildProcess:
        """Start the command with the file descriptor of its end of the pair, then `files`, as arguments.

        Raises OSError if there are no resources for it or no such program.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            # Connected first: nothing can be cancelled between the process's start and its being owned.
            reader, writer = await asyncio.open_connection(sock=ours)
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
                writer.close()
                raise
        return cls(process, reader, writer)

    def send(self, message: object) -> None:
        """Send a message. Nothing happens if the connection is closed."""
        if self.is_open and not self._writer.is_closing():
            self._writer.write(encode(message))

    async def drain(self) -> None:
        """Wait until the child has read most of what was sent, or has died."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def receive(self) -> bytes | None:
        """Return the next message's bytes, or None once the child has closed its end, which is its death."""
        try:
            (length,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

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
        self._writer.close()
