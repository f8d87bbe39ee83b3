"""One SQLite file that survives any kill: WAL, synchronous=FULL, one writer that commits what waits together."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_MAX_BATCH = 256


class Database:
    """Owns two connections, each with a thread of its own. `write` and `read` are for the event loop that made it.

    Changes that wait at the same time are committed together (one fsync for many requests); each is in a savepoint of
    its own, so that one that raises undoes itself alone. A `write` returns when its change is on the disk.
    """

    def __init__(self, path: Path, *schemas: str) -> None:
        """Raise sqlite3.Error if the file is not a database or can't be written."""
        self._path = path
        self._loop = asyncio.get_running_loop()
        connection = _connect(path)
        for schema in schemas:
            connection.executescript(schema)
        connection.close()
        self._writes: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._write_on, name="database writer", daemon=True),
            threading.Thread(target=self._read_on, name="database reader", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run `change` in the writer's thread, inside a transaction. What it raises is raised here."""
        return await self._run(self._writes, change)

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run `query`, which sees all changes whose `write` has returned."""
        return await self._run(self._reads, query)

    def close(self) -> None:
        """Finish what was asked before, and close the connections."""
        self._writes.put(None)
        self._reads.put(None)
        for thread in self._threads:
            thread.join()

    async def _run(self, calls: queue.SimpleQueue[_Call | None], function: Callable[[sqlite3.Connection], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        calls.put((function, future))
        return await future

    def _write_on(self) -> None:
        connection = _connect(self._path)
        while (first := self._writes.get()) is not None:
            batch = [first]
            with contextlib.suppress(queue.Empty):
                while len(batch) < _MAX_BATCH:
                    if (call := self._writes.get_nowait()) is None:
                        self._writes.put(None)  # the end is met again, behind this batch
                        break
                    batch.append(call)
            self._loop.call_soon_threadsafe(_resolve, _commit(connection, batch))
        connection.close()

    def _read_on(self) -> None:
        connection = _connect(self._path)
        while (call := self._reads.get()) is not None:
            self._loop.call_soon_threadsafe(_resolve, [_execute(connection, call)])
        connection.close()


_Call = tuple[Callable[[sqlite3.Connection], Any], "asyncio.Future[Any]"]
_Result = tuple["asyncio.Future[Any]", Any, BaseException | None]


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.row_factory = sqlite3.Row
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _commit(connection: sqlite3.Connection, batch: list[_Call]) -> list[_Result]:
    results: list[_Result] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for call in batch:
            connection.execute("SAVEPOINT one")
            result = _execute(connection, call)
            if result[2] is not None:
                connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
            results.append(result)
        connection.execute("COMMIT")
    except BaseException as error:  # a full disk, say: nothing of the batch was written
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        return [(future, None, error) for _, future in batch]
    return results


def _execute(connection: sqlite3.Connection, call: _Call) -> _Result:
    function, future = call
    try:
        return future, function(connection), None
    except Exception as error:
        return future, None, error


def _resolve(results: list[_Result]) -> None:
    for future, value, error in results:
        if future.done():  # its caller was cancelled
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
