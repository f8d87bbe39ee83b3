"""An instance of an endpoint: what others see of it, its row in the database, the environment of its process.

A process is not a container; three things differ from SageMaker. The model directory is not /opt/ml/model:
SM_MODEL_DIR and, if it holds anything, LONGHAUL_MODEL name it, and values in the model's Environment that are
/opt/ml/model or below name their place there. EnableNetworkIsolation takes AWS away from the process but can't cut its
network. The second ports of SAGEMAKER_SAFE_PORT_RANGE are ten of an instance's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import socket
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from endpoint.fleet import journal_bucket
from endpoint.process import Process, find_session, kill_marked
from endpoint.settings import Settings
from endpoint.state.catalog import Deployment
from endpoint.state.database import Database

State = Literal["starting", "healthy", "ending"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS instances (
    id TEXT PRIMARY KEY, endpoint TEXT NOT NULL, variant TEXT NOT NULL, config_name TEXT NOT NULL,
    state TEXT NOT NULL,        -- starting, healthy, ending
    slot INTEGER NOT NULL,      -- which ports of SAGEMAKER_SAFE_PORT_RANGE are its own
    port INTEGER,
    pid INTEGER, identity TEXT, -- of its process; NULL before there is one, or when a gateway was killed as it began
    launched_at REAL,           -- the first process
    ending_at REAL,             -- SIGTERM
    model_dir TEXT,
    given TEXT                  -- see settings_digest
);
"""

MARKER = "ENDPOINT_INSTANCE_ID"
"""Variable in each instance's environment, by which a process is found whose pid a killed gateway didn't write down."""

_MODEL_MOUNT = "/opt/ml/model"
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_FIRST_SAFE_PORT, _LAST_SAFE_PORT, _SAFE_PORTS = 23000, 23999, 10


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
    """Column `given`."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def instance(self) -> Instance:
        return Instance(id=self.id, endpoint=self.endpoint, variant=self.variant, url=self.url)


class Records:
    """Owns the table: each instance has a row before it has a process, and until no process of it is left."""

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


async def find_process(record: Record) -> Process | None:
    """Return a record's living process. If it is dead, or can't be told from others, kill all that is left of it."""
    if record.launched_at is None:
        return None
    if record.pid is None or record.identity is None:
        process = await asyncio.to_thread(find_session, MARKER, record.id)
    else:
        process = Process(record.pid, record.identity)
    if process is not None:
        if process.is_alive:
            return process
        await process.kill()
    await kill_marked(MARKER, record.id)
    return None


def settings_digest(settings: Settings) -> str:
    """Return a digest of the settings that a process keeps from its start: under others, it must be replaced."""
    kept = json.dumps([settings.serve, settings.url, settings.account, settings.region])
    return hashlib.sha256(kept.encode()).hexdigest()


def environment(
    settings: Settings, record: Record, deployment: Deployment, model_dir: Path, own: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return all variables of the process: of the developer's own (`own`) only what a program needs to run."""
    variables = {name: own[name] for name in (*_INHERITED, *settings.pass_environment) if name in own}
    variables |= {  # nothing leads to the developer's own AWS, whose files are under HOME
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": settings.region,
        "AWS_DEFAULT_REGION": settings.region,
    }
    if not deployment.model.get("EnableNetworkIsolation"):
        variables |= {
            "AWS_ENDPOINT_URL": settings.url,
            "AWS_ACCESS_KEY_ID": settings.account,  # the emulator takes an account's number from there
            "AWS_SECRET_ACCESS_KEY": "local",
        }
    if (journal := journal_bucket.uri(settings, deployment, record.endpoint)) is not None:
        variables[journal_bucket.VARIABLE] = journal
    variables["SM_MODEL_DIR"] = str(model_dir)
    if any(model_dir.iterdir()):
        variables["LONGHAUL_MODEL"] = str(model_dir)
    for name, value in deployment.container.get("Environment", {}).items():
        is_in_model = value == _MODEL_MOUNT or value.startswith(f"{_MODEL_MOUNT}/")
        variables[name] = str(model_dir) + value.removeprefix(_MODEL_MOUNT) if is_in_model else value
    first = _FIRST_SAFE_PORT + record.slot * _SAFE_PORTS % (_LAST_SAFE_PORT + 1 - _FIRST_SAFE_PORT)
    return variables | {
        "SAGEMAKER_BIND_TO_PORT": str(record.port),
        "SAGEMAKER_SAFE_PORT_RANGE": f"{first}-{first + _SAFE_PORTS - 1}",
        MARKER: record.id,
    }
