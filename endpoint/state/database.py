"""One SQLite file that survives any kill: WAL, synchronous=FULL, one writer that commits what waits together."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_MOST_TOGETHER = 256


class Database:
    """Owns two connections, each with a thread of its own. `write` and `read` are for the event loop that made it.

    What is written together is committed together (one fsync for many requests); each change is in a savepoint of its
    own, so that one that raises undoes itself alone. A `write` returns when its change is on the disk.
    """

    def __init__(self, path: Path, *schemas: str) -> None:
        """Raises sqlite3.Error if the file is no database or can't be written."""
        self._path = path
        self._loop = asyncio.get_running_loop()
        connection = _connect(path)
        for schema in schemas:
            connection.executescript(schema)
        connection.close()
        self._writes: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._write_on, name="database writer", daemon=True),
            threading.Thread(target=self._read_on, name="database reader", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """`change` runs in the writer's thread, inside a transaction. What it raises is raised here."""
        return await self._put(self._writes, change)

    async def read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """`question` sees everything that a `write` has returned for."""
        return await self._put(self._reads, question)

    def close(self) -> None:
        """What was given before is done first."""
        self._writes.put(None)
        self._reads.put(None)
        for thread in self._threads:
            thread.join()

    async def _put(self, works: queue.SimpleQueue[_Work | None], call: Callable[[sqlite3.Connection], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        works.put((call, future))
        return await future

    def _write_on(self) -> None:
        connection = _connect(self._path)
        while (together := _all_waiting(self._writes)) is not None:
            self._tell(_commit(connection, together))
        connection.close()

    def _read_on(self) -> None:
        connection = _connect(self._path)
        while (work := self._reads.get()) is not None:
            call, future = work
            self._tell([(future, *_attempt(connection, call))])
        connection.close()

    def _tell(self, outcomes: list[_Outcome]) -> None:
        self._loop.call_soon_threadsafe(_resolve, outcomes)


_Work = tuple[Callable[[sqlite3.Connection], Any], "asyncio.Future[Any]"]
_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.row_factory = sqlite3.Row
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _all_waiting(works: queue.SimpleQueue[_Work | None]) -> list[_Work] | None:
    """At least one; None at the end. An end behind work is put back, to be met next."""
    first = works.get()
    if first is None:
        return None
    together = [first]
    while len(together) < _MOST_TOGETHER:
        try:
            work = works.get_nowait()
        except queue.Empty:
            break
        if work is None:
            works.put(None)
            break
        together.append(work)
    return together


def _commit(connection: sqlite3.Connection, together: list[_Work]) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for call, future in together:
            connection.execute("SAVEPOINT one")
            result, error = _attempt(connection, call)
            if error is not None:
                connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
            outcomes.append((future, result, error))
        connection.execute("COMMIT")
    except BaseException as error:  # a full disk, say: nothing of it was written
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        return [(future, None, error) for _, future in together]
    return outcomes


def _attempt(connection: sqlite3.Connection, call: Callable[[sqlite3.Connection], Any]) -> tuple[Any, Exception | None]:
    try:
        return call(connection), None
    except Exception as error:
        return None, error


def _resolve(outcomes: list[_Outcome]) -> None:
    for future, result, error in outcomes:
        if future.done():  # its caller was cancelled
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
