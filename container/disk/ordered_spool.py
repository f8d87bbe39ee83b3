"""Records that come in any order and are read in the order of their numbers."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator

from container.disk.spool import CHUNK_BYTES, Spool

_ENTRY = struct.Struct("<QQ")
"""A record's offset and size, as the index has them."""
_ENTRIES_PER_READ = 4096
"""Index entries read per call."""


class OrderedSpool:
    """Owns two spools, the records and an index of where each lies, so that no memory grows with them."""

    def __init__(self, directory: str) -> None:
        self._records = Spool(directory)
        self._index = Spool(directory)
        self._count = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        self._records.close()
        self._index.close()

    @property
    def size(self) -> int:
        return self._records.size

    def put(self, number: int, record: bytes) -> None:
        """Add a record, in any thread; each number from 0 once."""
        self._put(number, len(record), (record,))

    def put_file(self, number: int, record: Spool) -> None:
        """Add a record that is too large for memory."""
        parts = (record.read_at(offset, CHUNK_BYTES) for offset in range(0, record.size, CHUNK_BYTES))
        self._put(number, record.size, parts)

    def _put(self, number: int, size: int, parts: Iterable[bytes]) -> None:
        with self._lock:
            self._index.write_at(number * _ENTRY.size, _ENTRY.pack(self._records.size, size))
            for part in parts:
                self._records.append(part)
            self._count = max(self._count, number + 1)

    def flush(self) -> None:
        """Write all records to the disk, so that they can't fail for want of space any more."""
        self._records.flush()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Read all records in order, in pieces of about `CHUNK_BYTES`. Call `flush` first."""
        pieces = self._pieces()
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece

    def _pieces(self) -> Iterator[bytes]:
        piece = bytearray()
        for first in range(0, self._count, _ENTRIES_PER_READ):
            end = min(self._count, first + _ENTRIES_PER_READ)
            entries = self._index.read_at(first * _ENTRY.size, (end - first) * _ENTRY.size)
            for offset, size in _ENTRY.iter_unpack(entries):
                for start in range(offset, offset + size, CHUNK_BYTES):
                    piece += self._records.read_at(start, min(CHUNK_BYTES, offset + size - start))
                    if len(piece) >= CHUNK_BYTES:
                        yield bytes(piece)
                        piece.clear()
        yield bytes(piece)


def close_soon(*spools: Spool | OrderedSpool) -> None:
    """Close them off the event loop: the kernel takes a while to free gigabytes."""
    for spool in spools:
        asyncio.get_running_loop().run_in_executor(None, spool.close)
