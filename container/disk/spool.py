"""Bodies and answers too large for memory: anonymous files in the spool directory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import IO

from container.errors import OutOfSpace

_CHUNK = 1 << 20
_KEEP_FREE = 16 << 20
"""Bytes left for others on the spool's disk."""
_PLACE = struct.Struct("<QQ")
"""A record's offset and size in the index."""
_PLACES = 4096
"""Of which so many are read at once."""


def close_soon(*spools: Spool | OrderedSpool) -> None:
    """Off the event loop: to free gigabytes takes the kernel a while."""
    for spool in spools:
        asyncio.get_running_loop().run_in_executor(None, spool.close)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledLine:
    """A line with its newline: `size` bytes from `offset` on. A long one is left in the file."""

    number: int
    offset: int
    size: int
    text: bytes | None


def full_disk() -> OutOfSpace:
    return OutOfSpace("the spool directory (LONGHAUL_SPOOL_DIR) is full", code="disk_full")


@contextlib.contextmanager
def naming_a_full_disk() -> Iterator[None]:
    """Raises OutOfSpace where writing fails for want of space."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise full_disk() from error


class Spool:
    """One anonymous file, written at its end. Gone with the process, whatever happens to it.

    Raises OutOfSpace when the disk is full, and ValueError when it is closed: its number may be another file's by then.
    The blocking methods are for worker threads.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._using = threading.Lock()
        self.size = 0
        with naming_a_full_disk():
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory, prefix="longhaul-")  # noqa: SIM115 (closed by close)

    def close(self) -> None:
        with self._using, contextlib.suppress(OSError):  # what a full disk has not taken is not wanted any more
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
        with naming_a_full_disk():
            self._file.write(data)
        self.size += len(data)

    def write_at(self, offset: int, data: bytes) -> None:
        with self._using, naming_a_full_disk():
            os.pwrite(self._file.fileno(), data, offset)

    def flush(self) -> None:
        """What was appended is on the disk: it can't be refused for want of space any more."""
        with naming_a_full_disk():
            self._file.flush()

    def fileno(self) -> int:
        """For another process to read the file, or to write it."""
        return self._file.fileno()

    def read_at(self, offset: int, size: int) -> bytes:
        """What has been flushed. Any thread may."""
        with self._using:
            return os.pread(self._file.fileno(), size, offset)

    def lines(self, longest: int) -> Iterator[SpooledLine]:
        """Every line; one over `longest` bytes without its text."""
        self._file.seek(0)
        offset = 0
        for number in count(1):
            text = self._file.readline(longest + 1)
            if not text:
                return
            size = len(text)
            if is_long := size > longest:
                part = text
                while not part.endswith(b"\n") and (part := self._file.readline(_CHUNK)):
                    size += len(part)
            yield SpooledLine(number=number, offset=offset, size=size, text=None if is_long else text)
            offset += size

    async def chunks(self) -> AsyncIterator[bytes]:
        """The whole file, in pieces of moderate size."""
        for offset in range(0, self.size, _CHUNK):
            yield await asyncio.to_thread(self.read_at, offset, _CHUNK)


class OrderedSpool:
    """Records that come in any order and are read in the order of their numbers. Takes no memory that grows."""

    def __init__(self, directory: str) -> None:
        self._records = Spool(directory)
        self._index = Spool(directory)  # where each record lies
        self._count = 0
        self._writing = threading.Lock()

    def close(self) -> None:
        self._records.close()
        self._index.close()

    @property
    def size(self) -> int:
        return self._records.size

    def put(self, number: int, record: bytes) -> None:
        """Each number from 0 once. Any thread may."""
        self._put(number, len(record), (record,))

    def put_file(self, number: int, record: Spool) -> None:
        """A record too large for memory."""
        parts = (record.read_at(offset, _CHUNK) for offset in range(0, record.size, _CHUNK))
        self._put(number, record.size, parts)

    def _put(self, number: int, size: int, parts: Iterable[bytes]) -> None:
        with self._writing:
            self._index.write_at(number * _PLACE.size, _PLACE.pack(self._records.size, size))
            for part in parts:
                self._records.append(part)
            self._count = max(self._count, number + 1)

    def flush(self) -> None:
        """All records are on the disk."""
        self._records.flush()

    async def chunks(self) -> AsyncIterator[bytes]:
        """All records in order, in pieces of moderate size. Only after `flush`."""
        parts = self._parts()
        while piece := await asyncio.to_thread(_joined, parts):
            yield piece

    def _parts(self) -> Iterator[bytes]:
        for offset, size in self._places():
            for at in range(offset, offset + size, _CHUNK):
                yield self._records.read_at(at, min(_CHUNK, offset + size - at))

    def _places(self) -> Iterator[tuple[int, int]]:
        """Offset and size of each record."""
        for first in range(0, self._count, _PLACES):
            end = min(self._count, first + _PLACES)
            yield from _PLACE.iter_unpack(self._index.read_at(first * _PLACE.size, (end - first) * _PLACE.size))


def _joined(parts: Iterator[bytes]) -> bytes:
    """The next of the parts, as many as make a piece of moderate size. Empty at the end."""
    joined, size = [], 0
    for part in parts:
        joined.append(part)
        size += len(part)
        if size >= _CHUNK:
            break
    return b"".join(joined)
