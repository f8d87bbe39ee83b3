"""Lines for a terminal, a file or a pipe, written by a thread, so that a reader that stopped reading blocks nothing."""

from __future__ import annotations

import logging
import os
import queue
import select
import threading

_MAX_WAITING = 10_000


class Terminal:
    """Owns the thread, which writes to the descriptor itself: a thread that hangs in `sys.stdout` holds its lock."""

    def __init__(self, descriptor: int, max_waiting: int = _MAX_WAITING) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[str | None] = queue.Queue(max_waiting)
        self._dropped = 0
        self._is_gone = False
        self._thread = threading.Thread(target=self._write_all, name=f"terminal {descriptor}", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queue a line without blocking. Lines not read in time are dropped; their number is written in their place."""
        if self._is_gone:
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def close(self, timeout_s: float) -> None:
        """Wait until the queued lines are written, at most twice `timeout_s`."""
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _write_all(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                self._write(f"{line}\n")
                if self._dropped and self._lines.empty():
                    dropped, self._dropped = self._dropped, 0
                    self._write(f"[{dropped} lines were not read in time and dropped]\n")
        except OSError:  # the reader is gone
            self._is_gone = True

    def _write(self, text: str) -> None:
        left = memoryview(text.encode(errors="backslashreplace"))
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])


class TerminalHandler(logging.Handler):
    """A log handler that writes to a Terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._terminal.put(self.format(record))
        except Exception:
            self.handleError(record)
