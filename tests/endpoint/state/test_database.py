from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from endpoint.state.catalog import SCHEMA, Catalog, Exists, NotFound
from endpoint.state.database import Database

TABLE = "CREATE TABLE IF NOT EXISTS numbers (number INTEGER PRIMARY KEY)"


def with_database(path: Path, work: Callable[[Database], Awaitable[Any]], *schemas: str) -> Any:
    async def run() -> Any:
        database = Database(path, *(schemas or (TABLE,)))
        try:
            return await work(database)
        finally:
            database.close()

    return asyncio.run(run())


def insert(number: int) -> Callable[[sqlite3.Connection], object]:
    return lambda db: db.execute("INSERT INTO numbers VALUES (?)", (number,))


def numbers(db: sqlite3.Connection) -> list[int]:
    return [row["number"] for row in db.execute("SELECT number FROM numbers ORDER BY number")]


def test_next_process_sees_written_rows(tmp_path: Path) -> None:
    with_database(tmp_path / "db", lambda database: database.write(insert(1)))
    assert with_database(tmp_path / "db", lambda database: database.read(numbers)) == [1]


def test_failed_change_undoes_only_itself(tmp_path: Path) -> None:
    async def work(database: Database) -> list[Any]:
        changes = [database.write(insert(number)) for number in (1, 2, 2, 3)]
        outcomes = await asyncio.gather(*changes, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == [sqlite3.IntegrityError]
        return await database.read(numbers)

    assert with_database(tmp_path / "db", work) == [1, 2, 3]


def test_change_is_atomic(tmp_path: Path) -> None:
    def half(db: sqlite3.Connection) -> None:
        insert(1)(db)
        raise ValueError("no more")

    async def work(database: Database) -> list[int]:
        with pytest.raises(ValueError, match="no more"):
            await database.write(half)
        return await database.read(numbers)

    assert with_database(tmp_path / "db", work) == []


def test_every_commit_is_synced(tmp_path: Path) -> None:
    async def work(database: Database) -> tuple[int, str]:
        def ask(db: sqlite3.Connection) -> tuple[int, str]:
            return db.execute("PRAGMA synchronous").fetchone()[0], db.execute("PRAGMA journal_mode").fetchone()[0]

        return await database.write(ask)

    assert with_database(tmp_path / "db", work) == (2, "wal")


# The catalog on it


def test_resource_and_tags_are_deleted_together(tmp_path: Path) -> None:
    async def work(database: Database) -> None:
        catalog = Catalog(database)
        await catalog.create("model", "m", "arn:m", {"ModelName": "m"}, {"team": "a"}, {})
        with pytest.raises(Exists):
            await catalog.create("model", "m", "arn:other", {}, {}, {})
        assert (await catalog.get("model", "m")).request == {"ModelName": "m"}
        await catalog.add_tags("arn:m", {"team": "b", "stage": "test"})
        await catalog.remove_tags("arn:m", ["stage"])
        assert await catalog.tags("arn:m") == {"team": "b"}
        await catalog.delete("model", "m")
        assert await catalog.tags("arn:m") == {} and await catalog.all("model") == []
        with pytest.raises(NotFound):
            await catalog.get("model", "m")

    with_database(tmp_path / "db", work, SCHEMA)


def test_an_endpoint_changes_by_its_fields(tmp_path: Path) -> None:
    state = {
        "status": "Creating",
        "failure_reason": None,
        "config_name": "c",
        "target_config_name": None,
        "desired": 1,
        "current": 0,
    }

    async def work(database: Database) -> None:
        catalog = Catalog(database)
        await catalog.create("endpoint", "e", "arn:e", {}, {}, state)
        changed = await catalog.change_endpoint("e", status="InService", current=1)
        assert changed == await catalog.endpoint("e")
        assert (changed.status, changed.current, changed.config_name) == ("InService", 1, "c")
        with pytest.raises(NotFound):
            await catalog.change_endpoint("f", status="InService")

    with_database(tmp_path / "db", work, SCHEMA)
