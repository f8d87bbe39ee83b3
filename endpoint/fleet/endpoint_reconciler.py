"""One endpoint's instances, brought to what its row in the catalog wants, and the row to what has become of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from endpoint.fleet.instance import Instance, Record, given_by
from endpoint.fleet.instance_supervisor import FleetContext, InstanceSupervisor, no_ping
from endpoint.process import Process
from endpoint.state.catalog import Catalog, Endpoint, NotFound
from endpoint.state.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS fleets (
    endpoint TEXT PRIMARY KEY,
    desired INTEGER NOT NULL,   -- instances when it was InService last: what a failed update goes back to
    model_dir TEXT              -- kept although there may be no instance
);
"""

_LOG = logging.getLogger(__name__)

_LONGEST_REASON = 1024
_CALM_S = 60.0
"""An instance that was healthy for so long is replaced at once; others with pauses that double."""
_LONGEST_PAUSE_S = 60.0


class EndpointReconciler:
    """Owns the lives of one endpoint's instances. `reconcile` is called whenever anything may have changed."""

    def __init__(
        self,
        name: str,
        around: FleetContext,
        database: Database,
        catalog: Catalog,
        busy: Callable[[str], int],
        on_change: Callable[[], None],
        on_over: Callable[[], None],
    ) -> None:
        """`on_change`: other instances may be given work, or none ever; `on_over`: one is gone."""
        self.name = name
        self.lives: dict[str, InstanceSupervisor] = {}
        self.gone = False
        """Neither the endpoint nor an instance of it is left."""
        self.runs = False
        """Not before all instances of an earlier gateway are adopted: it would start others in their place."""
        self.stopping = False
        self.woken = asyncio.Event()
        self._around = around
        self._given = given_by(around.settings)
        self._database = database
        self._catalog = catalog
        self._busy = busy
        self._on_change = on_change
        self._on_over = on_over
        self._serving: str | None = None
        self._failures: dict[str, str] = {}
        """By config's name: why an instance of it could not start."""
        self._strikes = 0
        self._not_before = 0.0
        self._own_reason: str | None = None

    def healthy(self) -> list[Instance]:
        return [
            life.record.instance
            for life in self.lives.values()
            if life.healthy and life.record.config_name == self._serving
        ]

    async def adopt(self, record: Record, process: Process) -> None:
        """One that an earlier gateway started. Ends it if the endpoint doesn't want it any more, or not as it is."""
        deployment = None
        try:
            endpoint = await self._catalog.endpoint(self.name)
            wanted = (endpoint.config_name, endpoint.target_config_name)
            is_current = record.config_name in wanted and record.given == self._given
            if endpoint.status not in ("Deleting", "Failed") and is_current:
                deployment = await self._catalog.deployment(endpoint, record.config_name)
            self._serving = endpoint.config_name
        except NotFound:
            pass
        self.lives[record.id] = InstanceSupervisor(self._around, record, deployment, self._changed, process)
        self._on_change()

    async def run(self) -> None:
        """Until `gone` or cancelled; never raises."""
        while not self.gone:
            self.woken.clear()
            try:
                await self._reconcile()
            except Exception:
                _LOG.exception("The instances of %s could not be looked after", self.name)
                self._wake_in(1.0)
            if not self.gone:
                await self.woken.wait()

    async def stop(self) -> None:
        """Ends all instances and starts no more."""
        self.stopping = True
        while lives := [life for life in self.lives.values() if not life.task.done()]:
            self._end(lives)
            await asyncio.wait({life.task for life in lives})

    # What the row wants

    async def _reconcile(self) -> None:
        if self.stopping:
            return
        try:
            endpoint = await self._catalog.endpoint(self.name)
        except NotFound:
            if self._all_ended():
                await self._leave()
            return
        self._serving = endpoint.config_name
        match endpoint.status:
            case "Deleting":
                if self._all_ended():
                    await self._catalog.delete("endpoint", self.name)
                    await self._leave()
            case "Failed":
                self._end(self.lives.values())
            case "Creating":
                await self._create(endpoint)
            case _ if endpoint.target_config_name is not None:
                await self._replace(endpoint, endpoint.target_config_name)
            case "Updating":
                await self._resize(endpoint)
            case _:
                await self._maintain(endpoint)

    def _all_ended(self) -> bool:
        self._end(self.lives.values())
        return not self.lives

    async def _leave(self) -> None:
        await self._database.write(lambda db: db.execute("DELETE FROM fleets WHERE endpoint = ?", (self.name,)))
        self.gone = True
        self._on_change()
        self._on_over()

    async def _create(self, endpoint: Endpoint) -> None:
        config = endpoint.config_name
        await self._size(endpoint, config, endpoint.desired)
        if reason := self._failures.pop(config, None):
            self._end(self.lives.values())
            await self._change(status="Failed", failure_reason=reason, current=0)
        elif self._count(config) >= endpoint.desired:
            await self._settle(endpoint, status="InService")

    async def _replace(self, endpoint: Endpoint, target: str) -> None:
        """Blue/green, all at once: the new ones beside the old, then only they."""
        before = await self._settled()
        await self._size(endpoint, target, endpoint.desired)
        if reason := self._failures.pop(target, None):
            self._end(life for life in self.lives.values() if life.record.config_name == target)
            await self._change(
                status="InService",
                failure_reason=reason,
                target_config_name=None,
                desired=before,
                current=self._count(endpoint.config_name),
            )
        elif self._count(target) >= endpoint.desired:
            await self._settle(endpoint, status="InService", config_name=target, target_config_name=None)
            self._serving = target
            self._on_change()
            self._end(life for life in self.lives.values() if life.record.config_name != target)
        else:
            await self._keep(endpoint, before)

    async def _resize(self, endpoint: Endpoint) -> None:
        config = endpoint.config_name
        await self._size(endpoint, config, endpoint.desired)
        if reason := self._failures.pop(config, None):
            await self._change(status="InService", failure_reason=reason, desired=await self._settled())
        elif self._count(config) == endpoint.desired:
            await self._settle(endpoint, status="InService")
        else:
            await self._tell_count(endpoint)

    async def _maintain(self, endpoint: Endpoint) -> None:
        await self._keep(endpoint, endpoint.desired)
        self._end(life for life in self.lives.values() if life.record.config_name != endpoint.config_name)
        if self._count(endpoint.config_name) == endpoint.desired:
            self._failures.clear()
            if self._own_reason is not None and endpoint.failure_reason == self._own_reason:
                await self._change(failure_reason=None)
            self._own_reason = None

    async def _keep(self, endpoint: Endpoint, wanted: int) -> None:
        """As many of those that serve, with pauses while they fail again and again."""
        config = endpoint.config_name
        if reason := self._failures.pop(config, None):
            self._own_reason = reason
            if endpoint.failure_reason != reason:
                await self._change(failure_reason=reason)
        pause_s = self._not_before - time.monotonic()
        if pause_s <= 0:
            await self._size(endpoint, config, wanted)
        else:
            self._wake_in(pause_s)
        await self._tell_count(endpoint)

    # Lives

    async def _size(self, endpoint: Endpoint, config: str, wanted: int) -> None:
        alive = [life for life in self.lives.values() if life.record.config_name == config and not life.ending]
        if config in self._failures:
            return
        if len(alive) < wanted:
            try:
                deployment = await self._catalog.deployment(endpoint, config)
            except NotFound as error:
                self._failures[config] = f'Could not find "{error}".'
                return
            for _ in range(wanted - len(alive)):
                variant = deployment.variant["VariantName"]
                record = await self._around.records.new(self.name, variant, config, self._given)
                self.lives[record.id] = InstanceSupervisor(self._around, record, deployment, self._changed)
        least_needed = sorted(alive, key=lambda life: (life.healthy, self._busy(life.id), _age(life)))
        self._end(least_needed[: max(len(alive) - wanted, 0)])

    def _end(self, lives: Iterable[InstanceSupervisor]) -> None:
        asked = [life for life in lives if not life.ending]
        for life in asked:
            life.end()
        if asked:
            self._on_change()

    def _changed(self, life: InstanceSupervisor) -> None:
        if life.over:
            del self.lives[life.id]
            self._on_over()
        elif life.record.state == "ending" and not life.end_asked:
            self._strike(life)
        self._on_change()
        self.woken.set()

    def _strike(self, life: InstanceSupervisor) -> None:
        """It ended by itself."""
        calm = life.healthy_since is not None and time.monotonic() - life.healthy_since > _CALM_S
        self._strikes = 1 if calm else self._strikes + 1
        if self._strikes > 1:
            self._not_before = time.monotonic() + min(_LONGEST_PAUSE_S, 2.0 ** (self._strikes - 2))
        failure = life.failure
        if failure is None and self._strikes >= self._around.settings.start_attempts:
            failure = no_ping(life.record.variant)  # healthy for a moment each time
        if failure is not None:
            self._failures.setdefault(life.record.config_name, failure[:_LONGEST_REASON])

    def _wake_in(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self.woken.set)

    def _count(self, config: str) -> int:
        return sum(life.healthy and life.record.config_name == config for life in self.lives.values())

    # The row

    async def _change(self, **changes: Any) -> None:
        await self._catalog.change_endpoint(self.name, **changes)

    async def _tell_count(self, endpoint: Endpoint) -> None:
        count = self._count(endpoint.config_name)
        if count != endpoint.current:
            await self._change(current=count)

    async def _settle(self, endpoint: Endpoint, **changes: Any) -> None:
        model_dirs = [life.record.model_dir for life in self.lives.values() if life.healthy]
        await self._database.write(
            lambda db: db.execute(
                "INSERT INTO fleets VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET desired = excluded.desired, "
                "model_dir = coalesce(excluded.model_dir, model_dir)",
                (self.name, endpoint.desired, model_dirs[-1] if model_dirs else None),
            )
        )
        config = changes.get("config_name", endpoint.config_name)
        await self._change(current=self._count(config), failure_reason=None, **changes)
        self._strikes, self._not_before = 0, 0.0

    async def _settled(self) -> int:
        row = await self._database.read(
            lambda db: db.execute("SELECT desired FROM fleets WHERE endpoint = ?", (self.name,)).fetchone()
        )
        return int(row["desired"]) if row else 1


def _age(life: InstanceSupervisor) -> float:
    return time.time() - (life.record.launched_at or time.time())
