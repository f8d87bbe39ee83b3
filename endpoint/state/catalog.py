"""The models, endpoint configs, endpoints and tags that were created, as rows. Knows no rules and no processes."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from endpoint.state.database import Database

Kind = Literal["model", "endpoint-config", "endpoint"]
Status = Literal["Creating", "Updating", "InService", "Failed", "Deleting"]

T = TypeVar("T")

SCHEMA = """
CREATE TABLE IF NOT EXISTS resources (
    kind TEXT NOT NULL, name TEXT NOT NULL, arn TEXT NOT NULL UNIQUE,
    created_at REAL NOT NULL, modified_at REAL NOT NULL,
    request TEXT NOT NULL,      -- JSON: the parameters of its Create operation
    state TEXT NOT NULL,        -- JSON: of endpoints, see Endpoint; else {}
    PRIMARY KEY (kind, name)
);
CREATE TABLE IF NOT EXISTS tags (arn TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (arn, key));
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A model, an endpoint config or an endpoint; only an endpoint has a state."""

    kind: Kind
    name: str
    arn: str
    created_at: float
    """Seconds since the epoch, as all times here."""
    modified_at: float
    request: dict[str, Any]
    state: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    name: str
    arn: str
    created_at: float
    modified_at: float
    status: Status
    failure_reason: str | None
    config_name: str
    """Name of the config that serves or, while `Creating`, will serve."""
    target_config_name: str | None
    """Name of the config that will serve once its instances are healthy, while `Updating`."""
    desired: int
    """Number of instances wanted of the one variant."""
    current: int
    """Number of healthy instances."""
    weight: float | None = None
    """Weight that UpdateEndpointWeightsAndCapacities set last; None: the config's."""
    deployment_config: dict[str, Any] | None = None
    """DeploymentConfig of the last CreateEndpoint or UpdateEndpoint that had one."""
    deployed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Config and model of the current and the target config, by the config's name: see `Catalog.deployment`. Written by
    the control plane only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Config and model that an endpoint runs, as they were when it was created or updated."""

    config: dict[str, Any]
    """Parameters of CreateEndpointConfig."""
    model: dict[str, Any]
    """Parameters of CreateModel."""

    @property
    def variant(self) -> dict[str, Any]:
        """The one ProductionVariant."""
        variant: dict[str, Any] = self.config["ProductionVariants"][0]
        return variant

    @property
    def container(self) -> dict[str, Any]:
        """The one ContainerDefinition."""
        container: dict[str, Any] = self.model.get("PrimaryContainer") or self.model["Containers"][0]
        return container

    @property
    def instance_types(self) -> frozenset[str]:
        """Types that the variant's instances may be of."""
        pools = self.variant.get("InstancePools") or [self.variant]
        return frozenset(pool["InstanceType"] for pool in pools)


class NotFound(LookupError):
    pass


class Exists(ValueError):
    pass


class Catalog:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change of a row: a status may be another now."""
        self._listeners.append(listener)

    async def create(
        self, kind: Kind, name: str, arn: str, request: dict[str, Any], tags: dict[str, str], state: dict[str, Any]
    ) -> Resource:
        """Raise Exists if there is one of that name."""
        now = time.time()

        def change(db: sqlite3.Connection) -> None:
            try:
                db.execute(
                    "INSERT INTO resources VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (kind, name, arn, now, now, json.dumps(request), json.dumps(state)),
                )
            except sqlite3.IntegrityError as error:
                raise Exists(name) from error
            _put_tags(db, arn, tags)

        await self._write(change)
        return Resource(kind=kind, name=name, arn=arn, created_at=now, modified_at=now, request=request, state=state)

    async def get(self, kind: Kind, name: str) -> Resource:
        """Raise NotFound if there is none."""
        row = await self._database.read(
            lambda db: db.execute("SELECT * FROM resources WHERE kind = ? AND name = ?", (kind, name)).fetchone()
        )
        if row is None:
            raise NotFound(name)
        return _resource(row)

    async def all(self, kind: Kind) -> list[Resource]:
        """Return all resources of a kind, oldest first."""
        rows = await self._database.read(
            lambda db: db.execute(
                "SELECT * FROM resources WHERE kind = ? ORDER BY created_at, name", (kind,)
            ).fetchall()
        )
        return [_resource(row) for row in rows]

    async def delete(self, kind: Kind, name: str) -> None:
        """Delete a resource and its tags. Raises NotFound."""

        def change(db: sqlite3.Connection) -> None:
            row = db.execute("DELETE FROM resources WHERE kind = ? AND name = ? RETURNING arn", (kind, name)).fetchone()
            if row is None:
                raise NotFound(name)
            db.execute("DELETE FROM tags WHERE arn = ?", (row["arn"],))

        await self._write(change)

    async def endpoint(self, name: str) -> Endpoint:
        """Raise NotFound if there is none."""
        return _endpoint(await self.get("endpoint", name))

    async def endpoints(self) -> list[Endpoint]:
        return [_endpoint(resource) for resource in await self.all("endpoint")]

    async def deployment(self, endpoint: Endpoint, config_name: str) -> Deployment:
        """Return the config and model that `endpoint` runs, or will run, under that config's name. Raises NotFound.

        Models and configs may be deleted, and made anew, while endpoints use them: those go on with what they have.
        """
        if deployed := endpoint.deployed.get(config_name):
            return Deployment(config=deployed["config"], model=deployed["model"])
        return await self.deployable(config_name)

    async def deployable(self, config_name: str) -> Deployment:
        """Return the config and its model as they are now. Raises NotFound."""
        config = (await self.get("endpoint-config", config_name)).request
        model = (await self.get("model", config["ProductionVariants"][0]["ModelName"])).request
        return Deployment(config=config, model=model)

    async def change_endpoint(self, name: str, **changes: Any) -> Endpoint:
        """Change fields of an endpoint, but not its name, ARN and times; `modified_at` becomes now. Raises NotFound."""

        def change(db: sqlite3.Connection) -> sqlite3.Row:
            row = db.execute("SELECT state FROM resources WHERE kind = 'endpoint' AND name = ?", (name,)).fetchone()
            if row is None:
                raise NotFound(name)
            state = json.loads(row["state"]) | changes
            changed: sqlite3.Row = db.execute(
                "UPDATE resources SET state = ?, modified_at = ? WHERE kind = 'endpoint' AND name = ? RETURNING *",
                (json.dumps(state), time.time(), name),
            ).fetchone()
            return changed

        return _endpoint(_resource(await self._write(change)))

    async def exists(self, arn: str) -> bool:
        row = await self._database.read(
            lambda db: db.execute("SELECT 1 FROM resources WHERE arn = ?", (arn,)).fetchone()
        )
        return row is not None

    async def tags(self, arn: str) -> dict[str, str]:
        rows = await self._database.read(
            lambda db: db.execute("SELECT key, value FROM tags WHERE arn = ? ORDER BY key", (arn,)).fetchall()
        )
        return {row["key"]: row["value"] for row in rows}

    async def add_tags(self, arn: str, tags: dict[str, str]) -> None:
        await self._database.write(lambda db: _put_tags(db, arn, tags))

    async def remove_tags(self, arn: str, keys: list[str]) -> None:
        await self._database.write(
            lambda db: db.executemany("DELETE FROM tags WHERE arn = ? AND key = ?", [(arn, key) for key in keys])
        )

    async def _write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        result = await self._database.write(change)
        for listener in self._listeners:
            listener()
        return result


def _put_tags(db: sqlite3.Connection, arn: str, tags: dict[str, str]) -> None:
    db.executemany("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", [(arn, *tag) for tag in tags.items()])


def _resource(row: sqlite3.Row) -> Resource:
    return Resource(**dict(row) | {name: json.loads(row[name]) for name in ("request", "state")})


def _endpoint(resource: Resource) -> Endpoint:
    return Endpoint(
        name=resource.name,
        arn=resource.arn,
        created_at=resource.created_at,
        modified_at=resource.modified_at,
        **resource.state,
    )
