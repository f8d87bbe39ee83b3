"""Bodies and answers too large for memory: anonymous files in the spool directory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import tempfile
import threading
from array import array
from collections.abc import AsyncIterator, Iterator
from typing import IO

from .errors import OutOfSpace

_CHUNK = 1 << 20
_KEEP_FREE = 16 << 20
"""Bytes left for others on the spool's disk."""


class Spool:
    """One anonymous file, written at its end. Gone with the process, whatever happens to it.

    Raises OutOfSpace when the disk is full. The blocking methods are for worker threads.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.size = 0
        with self._naming_a_full_disk():
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory, prefix="longhaul-")  # noqa: SIM115 (closed by close)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what a full disk has not taken is not wanted any more
            self._file.close()

    def reserve(self, size: int) -> None:
        """Refuse a body of a known size at once rather than halfway."""
        free = shutil.disk_usage(self._directory).free
        if size + _KEEP_FREE > free:
            raise OutOfSpace(
                f"the spool directory has {free} bytes free; {size} and {_KEEP_FREE} in reserve are needed",
                code="disk_full",
            )

    def append(self, data: bytes) -> None:
        with self._naming_a_full_disk():
            self._file.write(data)
        self.size += len(data)

    def flush(self) -> None:
        """What was appended is on the disk: it can't be refused for want of space any more."""
        with self._naming_a_full_disk():
            self._file.flush()

    @contextlib.contextmanager
    def _naming_a_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise OutOfSpace(f"the spool directory is full after {self.size} bytes", code="disk_full") from error

    def read_at(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def lines(self, longest: int) -> Iterator[bytes]:
        """Lines with their newlines. One over `longest` bytes comes cut to `longest` + 1, so that it shows."""
        self._file.seek(0)
        while line := self._file.readline(longest + 1):
            yield line
            while len(line) > longest and not line.endswith(b"\n") and (rest := self._file.readline(_CHUNK)):
                if rest.endswith(b"\n"):
                    break


class OrderedSpool:
    """Records that come in any order and are read in the order of their numbers, with a few bytes of memory each."""

    def __init__(self, directory: str) -> None:
        self._spool = Spool(directory)
        self._offsets = array("Q")
        self._sizes = array("Q")
        self._writing = threading.Lock()

    def close(self) -> None:
        self._spool.close()

    @property
    def size(self) -> int:
        return self._spool.size

    def put(self, number: int, record: bytes) -> None:
        """Each number from 0 once. Any thread may."""
        with self._writing:
            missing = number + 1 - len(self._offsets)
            if missing > 0:
                self._offsets.extend([0] * missing)
                self._sizes.extend([0] * missing)
            self._offsets[number], self._sizes[number] = self._spool.size, len(record)
            self._spool.append(record)

    def flush(self) -> None:
        """All records are on the disk."""
        self._spool.flush()

    async def chunks(self) -> AsyncIterator[bytes]:
        """All records in order, in pieces of moderate size."""
        first = 0
        while first < len(self._offsets):
            first, piece = await asyncio.to_thread(self._piece, first)
            yield piece

    def _piece(self, first: int) -> tuple[int, bytes]:
        parts: list[bytes] = []
        size = 0
        while first < len(self._offsets) and size < _CHUNK:
            parts.append(self._spool.read_at(self._offsets[first], self._sizes[first]))
            size += self._sizes[first]
            first += 1
        return first, b"".join(parts)
