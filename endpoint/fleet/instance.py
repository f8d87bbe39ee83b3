"""An instance of an endpoint: what others see of it, and its row in the database."""

from __future__ import annotations

import secrets
import socket
import sqlite3
from dataclasses import dataclass
from typing import Any, Literal

from endpoint.state.database import Database

State = Literal["starting", "healthy", "ending"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS instances (
    id TEXT PRIMARY KEY, endpoint TEXT NOT NULL, variant TEXT NOT NULL, config_name TEXT NOT NULL,
    state TEXT NOT NULL,        -- starting, healthy, ending
    slot INTEGER NOT NULL,      -- which ports of SAGEMAKER_SAFE_PORT_RANGE are its own
    port INTEGER,
    pid INTEGER, identity TEXT, -- of its container; NULL before there is one, or when a gateway was killed as it began
    launched_at REAL,           -- the first container
    ending_at REAL,             -- SIGTERM
    model_dir TEXT,
    given TEXT                  -- see Record.settings_digest
);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    id: str
    endpoint: str
    variant: str
    url: str


@dataclass(slots=True, kw_only=True)
class Record:
    """A row of `instances`, changed by `Records.change` only."""

    id: str
    endpoint: str
    variant: str
    config_name: str
    state: State
    slot: int
    port: int | None = None
    pid: int | None = None
    identity: str | None = None
    launched_at: float | None = None
    ending_at: float | None = None
    model_dir: str | None = None
    settings_digest: str | None = None
    """Digest of the settings it was started under (column `given`); a runner other than "process" is named first."""

    @property
    def runner(self) -> str:
        """Name of the runner that started its container."""
        name, colon, _ = (self.settings_digest or "").partition(":")
        return name if colon else "process"


class Records:
    """Owns the table: each instance has a row before it has a container, and until nothing of that is left."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._slots: set[int] = set()
        self._ports: dict[str, int | None] = {}

    async def all(self) -> list[Record]:
        rows = await self._database.read(lambda db: db.execute("SELECT * FROM instances").fetchall())
        self._slots |= {row["slot"] for row in rows}
        self._ports |= {row["id"]: row["port"] for row in rows}
        return [Record(settings_digest=values.pop("given"), **values) for values in map(dict, rows)]

    async def create(self, endpoint: str, variant: str, config_name: str, settings_digest: str) -> Record:
        slot = next(slot for slot in range(len(self._slots) + 1) if slot not in self._slots)
        self._slots.add(slot)
        record = Record(
            id=f"i-{secrets.token_hex(9)[:17]}",
            endpoint=endpoint,
            variant=variant,
            config_name=config_name,
            state="starting",
            slot=slot,
            settings_digest=settings_digest,
        )
        await self._database.write(
            lambda db: db.execute(
                "INSERT INTO instances (id, endpoint, variant, config_name, state, slot, given) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (record.id, endpoint, variant, config_name, record.state, slot, settings_digest),
            )
        )
        return record

    async def change(self, record: Record, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(record, name, value)
        self._ports[record.id] = record.port
        columns = ", ".join(f"{name} = ?" for name in changes)

        def change(db: sqlite3.Connection) -> None:
            db.execute(f"UPDATE instances SET {columns} WHERE id = ?", (*changes.values(), record.id))

        await self._database.write(change)

    async def remove(self, record: Record) -> None:
        await self._database.write(lambda db: db.execute("DELETE FROM instances WHERE id = ?", (record.id,)))
        self._slots.discard(record.slot)
        self._ports.pop(record.id, None)

    def free_port(self) -> int:
        """Return a port on which nothing listens, and on which no instance is about to."""
        while True:
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                port: int = sock.getsockname()[1]
            if port not in self._ports.values():
                return port
