"""Lines for a terminal, a file or a pipe, written by a thread: a reader that has stopped reading stops nothing here."""

from __future__ import annotations

import logging
import os
import queue
import select
import threading

_MOST_WAITING = 10_000


class Terminal:
    """Owns the thread. It writes to the descriptor itself, for a thread that hangs in `sys.stdout` holds its lock."""

    def __init__(self, descriptor: int, most_waiting: int = _MOST_WAITING) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[str | None] = queue.Queue(most_waiting)
        self._dropped = 0
        self._is_gone = False
        self._thread = threading.Thread(target=self._write_all, name=f"terminal {descriptor}", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Never blocks. What nobody reads in time is dropped, and how many lines that were is said in their place."""
        if self._is_gone:
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def close(self, within_s: float) -> None:
        """Waits so long at most for what is to be written still."""
        try:
            self._lines.put(None, timeout=within_s)
        except queue.Full:
            return
        self._thread.join(within_s)

    def _write_all(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                self._write(f"{line}\n")
                if self._dropped and self._lines.empty():
                    dropped, self._dropped = self._dropped, 0
                    self._write(f"[{dropped} lines were dropped here: nobody read them]\n")
        except OSError:  # nobody is there to read any more
            self._is_gone = True

    def _write(self, text: str) -> None:
        left = memoryview(text.encode(errors="backslashreplace"))
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])


class TerminalHandler(logging.Handler):
    """A log that goes there."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._terminal.put(self.format(record))
        except Exception:
            self.handleError(record)
