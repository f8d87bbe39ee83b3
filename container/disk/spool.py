"""A body or an answer too large for memory: an anonymous file in the spool directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from itertools import count
from typing import IO

from container.disk.full_disk import naming_a_full_disk
from container.errors import OutOfSpace

CHUNK_BYTES = 1 << 20
"""Size of the pieces in which large files are read and sent."""
_RESERVE_BYTES = 16 << 20
"""Bytes left free for others on the spool's disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledLine:
    """A line with its newline: `size` bytes from `offset` on. `text` is None for a line over the limit."""

    number: int
    offset: int
    size: int
    text: bytes | None


class Spool:
    """One anonymous file, written at its end. It is gone with the process, however that ends.

    The methods raise OutOfSpace when the disk is full, and ValueError once the spool is closed: its descriptor's number
    may be another file's by then. The blocking ones are for worker threads.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self.size = 0
        with naming_a_full_disk():
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory, prefix="longhaul-")  # noqa: SIM115 (closed by close)

    def close(self) -> None:
        # Closing flushes, and what a full disk did not take is not wanted any more.
        with self._lock, contextlib.suppress(OSError):
            self._file.close()

    def reserve(self, size: int) -> None:
        """Refuse a body of a known size at once rather than halfway."""
        free = shutil.disk_usage(self._directory).free
        if size + _RESERVE_BYTES > free:
            raise OutOfSpace(
                f"the spool directory has {free} bytes free; {size} and {_RESERVE_BYTES} in reserve are needed",
                code="disk_full",
            )

    def append(self, data: bytes) -> None:
        with naming_a_full_disk():
            self._file.write(data)
        self.size += len(data)

    def write_at(self, offset: int, data: bytes) -> None:
        with self._lock, naming_a_full_disk():
            os.pwrite(self._file.fileno(), data, offset)

    def flush(self) -> None:
        """Write what was appended to the disk, so that it can't fail for want of space any more."""
        with naming_a_full_disk():
            self._file.flush()

    def fileno(self) -> int:
        """Return the descriptor, for another process that reads or writes the file."""
        return self._file.fileno()

    def read_at(self, offset: int, size: int) -> bytes:
        """Read flushed bytes, in any thread."""
        with self._lock:
            return os.pread(self._file.fileno(), size, offset)

    def lines(self, longest: int) -> Iterator[SpooledLine]:
        """Read every line; one over `longest` bytes comes without its text."""
        self._file.seek(0)
        offset = 0
        for number in count(1):
            text = self._file.readline(longest + 1)
            if not text:
                return
            size = len(text)
            if is_long := size > longest:
                part = text
                while not part.endswith(b"\n") and (part := self._file.readline(CHUNK_BYTES)):
                    size += len(part)
            yield SpooledLine(number=number, offset=offset, size=size, text=None if is_long else text)
            offset += size

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Read the whole file in pieces of `CHUNK_BYTES`."""
        for offset in range(0, self.size, CHUNK_BYTES):
            yield await asyncio.to_thread(self.read_at, offset, CHUNK_BYTES)
