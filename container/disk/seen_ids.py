"""Names of a batch's lines, to notice repeated ones; on the disk, as a file may have millions of lines."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading

from container.disk.full_disk import full_disk
from container.disk.scratch_table import open_scratch

_SEEN = "CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID"
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)


class SeenIds:
    """Owns a table of digests in a file that is gone with the process. Any thread may use it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._table: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def add(self, name: str) -> bool:
        """Add the name; False if it was there. Raises OutOfSpace when the disk is full."""
        digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()
        try:
            with self._lock:
                if self._table is None:
                    self._table = open_scratch(self._directory, _SEEN)
                return self._table.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in _FULL:
                raise
            raise full_disk() from error

    def close(self) -> None:
        with self._lock, contextlib.suppress(sqlite3.Error):
            if self._table is not None:
                self._table.close()
