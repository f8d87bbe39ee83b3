"""A table for what takes too much memory: SQLite in a file that has no name and is gone with the process."""

from __future__ import annotations

import os
import sqlite3
import tempfile

from container.disk.full_disk import full_disk, naming_a_full_disk

_CACHE_KIB = 8 << 10


def open_scratch(directory: str, *tables: str) -> sqlite3.Connection:
    """Make the tables in a new file. Any thread may use it, one at a time. Raises OutOfSpace when the disk is full."""
    with naming_a_full_disk():
        handle, path = tempfile.mkstemp(dir=directory, prefix="longhaul-")
    os.close(handle)
    try:
        scratch = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for setting in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", f"cache_size=-{_CACHE_KIB}"):
            scratch.execute(f"PRAGMA {setting}")
        for table in tables:
            scratch.execute(table)
        scratch.execute("BEGIN")  # never ended: nothing here is to outlive the process
    except sqlite3.Error as error:
        raise full_disk() from error
    finally:
        os.unlink(path)
    return scratch
