"""The names of a batch's lines, so that a repeated one is noticed. On the disk: a file may have millions of lines."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading

from container.disk.scratch_table import open_scratch
from container.disk.spool import full_disk

_SEEN = "CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID"
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)


class SeenIds:
    """Owns a table of digests in a file that is gone with the process. Any thread may."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._table: sqlite3.Connection | None = None
        self._using = threading.Lock()

    def add(self, name: str) -> bool:
        """Whether the name is new. Raises OutOfSpace when the disk is full."""
        digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()
        try:
            with self._using:
                return self._insert(digest)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in _FULL:
                raise
            raise full_disk() from error

    def _insert(self, digest: bytes) -> bool:
        if self._table is None:
            self._table = open_scratch(self._directory, _SEEN)
        return self._table.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1

    def close(self) -> None:
        with self._using, contextlib.suppress(sqlite3.Error):
            if self._table is not None:
                self._table.close()
