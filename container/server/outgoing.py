"""Bytes that are sent on a connection: how many of them the client has, and whether it can get the rest."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios

STATUS_START = b"HTTP/1.1 "
"""Bytes that every answer begins with."""
_FIRST_LOOK_S = 0.001
_LAST_LOOK_S = 0.05
_RARE_LOOK_S = 1.0
"""Seconds between two looks: the first, the last while someone waits for what the client takes, and at other times."""
_TCP_CLOSE = 7
"""State of a connection that has ended, as `tcp(7)` numbers them."""


class Outgoing:
    """Counts the bytes on their way to one client.

    A client has what its system has confirmed. No system call waits for that, so the kernel is asked: soon at first,
    then more and more rarely, and only while it matters to someone.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.is_lost = False
        """True once the client gets no more."""
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._loop = loop
        self._sent = self._taken = 0
        self._is_ahead = False
        self._is_watched = self._closes = False
        self._waits: list[tuple[int, asyncio.Future[bool]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = _FIRST_LOOK_S

    def write(self, data: bytes) -> None:
        if self._is_ahead:  # an answer begins, whose first bytes are sent already
            data, self._is_ahead = data.removeprefix(STATUS_START), False
        self._sent += len(data)
        self._transport.write(data)

    def send_ahead(self) -> None:
        """Send the first bytes of the next answer. The system of a client that has gone answers them with a reset."""
        if not self._is_ahead:
            self.write(STATUS_START)
            self._is_ahead = True

    @property
    def taken_bytes(self) -> int:
        if not self.is_lost:
            # The end of the sending counts as a byte, until it is confirmed.
            unconfirmed = int.from_bytes(fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
            self._taken = self._sent - self._transport.get_write_buffer_size() - unconfirmed
        return self._taken

    @property
    def untaken_bytes(self) -> int:
        return self._sent - self.taken_bytes

    def taking(self) -> asyncio.Future[bool]:
        """Return a future: true once the client has all that was sent until now, false once it can't get it."""
        future: asyncio.Future[bool] = self._loop.create_future()
        if self.is_lost:
            future.set_result(False)
        else:
            self._waits.append((self._sent, future))
            self.look()
            if not future.done():
                self._look_soon()
        return future

    def watch(self) -> None:
        """Notice without being told if the client has gone."""
        self._is_watched = True
        self._look_soon()

    def close_when_taken(self) -> None:
        """Close the connection once the client has everything."""
        self._closes = self._is_watched = True
        self._look_soon()

    def look(self) -> None:
        """Find out what the client has, and whether it is still there."""
        if self.is_lost or not (self._waits or self._is_watched):
            return
        taken = self.taken_bytes
        waits, self._waits = self._waits, []
        for end, future in waits:
            if taken < end:
                self._waits.append((end, future))
            elif not future.done():
                future.set_result(True)
        if self._closes and taken == self._sent:
            self._transport.close()
        elif self._is_watched and self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            self.lose()
            self._transport.abort()

    def lose(self) -> None:
        """The client gets no more."""
        self.is_lost = True
        if self._timer is not None:
            self._timer.cancel()
        waits, self._waits = self._waits, []
        for _, future in waits:
            if not future.done():
                future.set_result(False)

    def _look_soon(self) -> None:
        self._pause_s = _FIRST_LOOK_S
        self._look_later()

    def _look_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._pause_s, self._look_again)

    def _look_again(self) -> None:
        self.look()
        if not self.is_lost and (self._waits or self._is_watched):
            self._pause_s = min(2 * self._pause_s, _LAST_LOOK_S if self._waits else _RARE_LOOK_S)
            self._look_later()
