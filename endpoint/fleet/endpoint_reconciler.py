"""Brings one endpoint's instances to what its row in the catalog wants, and the row to what has become of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

from endpoint.backoff import Backoff
from endpoint.fleet.instance import Instance, Record
from endpoint.fleet.instance_supervisor import FleetContext, InstanceSupervisor, ping_failure
from endpoint.fleet.runners.runner import Container
from endpoint.state.catalog import Endpoint, NotFound

SCHEMA = """
CREATE TABLE IF NOT EXISTS fleets (
    endpoint TEXT PRIMARY KEY,
    desired INTEGER NOT NULL,   -- instances when it was InService last: what a failed update goes back to
    model_dir TEXT              -- kept although there may be no instance
);
"""

_LOG = logging.getLogger(__name__)

_MAX_REASON_LENGTH = 1024
_RETRY_INTERVAL_S = 1.0
_STABLE_AFTER_S = 60.0
"""Seconds for which an instance must have been healthy to be replaced at once; others are, with pauses that double."""
_MIN_PAUSE_S, _MAX_PAUSE_S = 1.0, 60.0


class EndpointReconciler:
    """Owns the instances of one endpoint."""

    def __init__(
        self, name: str, context: FleetContext, on_change: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        """`on_change` is called when `healthy` may answer otherwise, `on_end` when an instance or all of it is gone."""
        self.name = name
        self.instances: dict[str, InstanceSupervisor] = {}
        self.is_gone = False
        """Whether neither the endpoint nor an instance of it is left."""
        self._context = context
        self._on_change = on_change
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._serving: str | None = None
        """Name of the config whose instances may be given work."""
        self._failures: dict[str, str] = {}
        """Reasons why an instance could not start, by its config's name."""
        self._failures_in_row = 0
        self._backoff = Backoff(_MIN_PAUSE_S, _MAX_PAUSE_S)
        self._next_start_at = 0.0
        self._own_reason: str | None = None
        """FailureReason of the row that was written here, and is removed when the instances are well."""

    def healthy(self) -> list[Instance]:
        """Return the instances that may be given work."""
        return [
            supervisor.instance
            for supervisor in self.instances.values()
            if supervisor.is_healthy and supervisor.record.config_name == self._serving
        ]

    async def adopt(self, record: Record, container: Container) -> None:
        """Take over an instance that an earlier gateway started, or end it if it isn't wanted as it is."""
        deployment = None
        try:
            endpoint = await self._context.catalog.endpoint(self.name)
            wanted = (endpoint.config_name, endpoint.target_config_name)
            is_current = record.config_name in wanted and record.settings_digest == self._context.runner.settings_digest
            if endpoint.status not in ("Deleting", "Failed") and is_current:
                deployment = await self._context.catalog.deployment(endpoint, record.config_name)
            self._serving = endpoint.config_name
        except NotFound:
            pass
        self.instances[record.id] = InstanceSupervisor(self._context, record, deployment, self._note_change, container)
        self._on_change()

    def start(self) -> None:
        """Begin to reconcile, unless begun.

        All instances of an earlier gateway must have been adopted: others would be started in their place.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Reconcile soon: something may have changed."""
        self._woken.set()

    async def end_all(self) -> None:
        """End all instances; with `FleetContext.stopping`, no more are started."""
        while running := [supervisor for supervisor in self.instances.values() if not supervisor.task.done()]:
            self._end(running)
            await asyncio.wait({supervisor.task for supervisor in running})

    async def close(self) -> None:
        """Stop reconciling and supervising. The instances live on."""
        tasks = [supervisor.task for supervisor in self.instances.values()]
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while not self.is_gone:
            self._woken.clear()
            try:
                await self._reconcile()
            except Exception:
                _LOG.exception("The instances of %s could not be reconciled", self.name)
                self._wake_in(_RETRY_INTERVAL_S)
            if not self.is_gone:
                await self._woken.wait()

    # What the row wants

    async def _reconcile(self) -> None:
        if self._context.stopping.is_set():
            return
        try:
            endpoint = await self._context.catalog.endpoint(self.name)
        except NotFound:
            endpoint = None
        if endpoint is None or endpoint.status == "Deleting":
            self._end(self.instances.values())
            if self.instances:
                return
            if endpoint is not None:
                await self._context.catalog.delete("endpoint", self.name)
            await self._context.database.write(
                lambda db: db.execute("DELETE FROM fleets WHERE endpoint = ?", (self.name,))
            )
            self.is_gone = True
            self._on_change()
            self._on_end()
            return
        self._serving = endpoint.config_name
        match endpoint.status:
            case "Failed":
                self._end(self.instances.values())
            case "Creating":
                await self._create(endpoint)
            case _ if endpoint.target_config_name is not None:
                await self._replace(endpoint, endpoint.target_config_name)
            case "Updating":
                await self._resize(endpoint)
            case _:
                await self._keep(endpoint, endpoint.desired)
                self._end_other_than(endpoint.config_name)
                if self._count_healthy(endpoint.config_name) == endpoint.desired:
                    self._failures.clear()
                    if self._own_reason is not None and endpoint.failure_reason == self._own_reason:
                        await self._change(failure_reason=None)
                    self._own_reason = None

    async def _create(self, endpoint: Endpoint) -> None:
        config = endpoint.config_name
        await self._scale(endpoint, config, endpoint.desired)
        if reason := self._failures.pop(config, None):
            self._end(self.instances.values())
            await self._change(status="Failed", failure_reason=reason, current=0)
        elif self._count_healthy(config) >= endpoint.desired:
            await self._settle(endpoint, status="InService")

    async def _replace(self, endpoint: Endpoint, target: str) -> None:
        """Update blue/green, all at once: new instances beside the old, then only they."""
        desired_before = await self._last_desired()
        await self._scale(endpoint, target, endpoint.desired)
        if reason := self._failures.pop(target, None):
            self._end(self._of_config(target))
            await self._change(
                status="InService",
                failure_reason=reason,
                target_config_name=None,
                desired=desired_before,
                current=self._count_healthy(endpoint.config_name),
            )
        elif self._count_healthy(target) >= endpoint.desired:
            await self._settle(endpoint, status="InService", config_name=target, target_config_name=None)
            self._serving = target
            self._on_change()
            self._end_other_than(target)
        else:
            await self._keep(endpoint, desired_before)

    async def _resize(self, endpoint: Endpoint) -> None:
        config = endpoint.config_name
        await self._scale(endpoint, config, endpoint.desired)
        if reason := self._failures.pop(config, None):
            await self._change(status="InService", failure_reason=reason, desired=await self._last_desired())
        elif self._count_healthy(config) == endpoint.desired:
            await self._settle(endpoint, status="InService")
        else:
            await self._update_current(endpoint)

    async def _keep(self, endpoint: Endpoint, wanted: int) -> None:
        """Keep `wanted` instances of the config that serves, with pauses while they fail again and again."""
        config = endpoint.config_name
        if reason := self._failures.pop(config, None):
            self._own_reason = reason
            if endpoint.failure_reason != reason:
                await self._change(failure_reason=reason)
        pause_s = self._next_start_at - time.monotonic()
        if pause_s <= 0:
            await self._scale(endpoint, config, wanted)
        else:
            self._wake_in(pause_s)
        await self._update_current(endpoint)

    # Instances

    async def _scale(self, endpoint: Endpoint, config: str, wanted: int) -> None:
        """Start instances of a config, or end those that are least needed."""
        if config in self._failures:
            return
        alive = [supervisor for supervisor in self._of_config(config) if not supervisor.is_ending]
        if len(alive) < wanted:
            try:
                deployment = await self._context.catalog.deployment(endpoint, config)
            except NotFound as error:
                self._failures[config] = f'Could not find "{error}".'
                return
            variant = deployment.variant["VariantName"]
            for _ in range(wanted - len(alive)):
                digest = self._context.runner.settings_digest
                record = await self._context.records.create(self.name, variant, config, digest)
                self.instances[record.id] = InstanceSupervisor(self._context, record, deployment, self._note_change)

        def need(supervisor: InstanceSupervisor) -> tuple[bool, int, float]:
            age_s = time.time() - (supervisor.record.launched_at or time.time())
            return supervisor.is_healthy, self._context.in_flight[supervisor.id], age_s

        surplus = sorted(alive, key=need)[: max(len(alive) - wanted, 0)]
        for supervisor in surplus:
            if requests := self._context.in_flight[supervisor.id]:
                self._context.ended_busy[self.name] += 1
                _LOG.warning("%s needs fewer instances: %s ends with %d requests", self.name, supervisor.id, requests)
        self._end(surplus)

    def _of_config(self, config: str) -> list[InstanceSupervisor]:
        return [supervisor for supervisor in self.instances.values() if supervisor.record.config_name == config]

    def _count_healthy(self, config: str) -> int:
        return sum(supervisor.is_healthy for supervisor in self._of_config(config))

    def _end_other_than(self, config: str) -> None:
        self._end(supervisor for supervisor in self.instances.values() if supervisor.record.config_name != config)

    def _end(self, supervisors: Iterable[InstanceSupervisor]) -> None:
        ending = [supervisor for supervisor in supervisors if not supervisor.is_ending]
        for supervisor in ending:
            supervisor.request_end()
        if ending:
            self._on_change()

    def _note_change(self, supervisor: InstanceSupervisor) -> None:
        if supervisor.has_ended:
            del self.instances[supervisor.id]
            self._on_end()
        elif supervisor.record.state == "ending" and not supervisor.is_end_requested:
            if time.monotonic() - (supervisor.healthy_since or inf) > _STABLE_AFTER_S:
                self._failures_in_row = 0
                self._backoff.reset()
            self._failures_in_row += 1
            if self._failures_in_row > 1:
                self._next_start_at = time.monotonic() + self._backoff.next_s()
            failure = supervisor.failure
            if failure is None and self._failures_in_row >= self._context.settings.start_attempts:
                failure = ping_failure(supervisor.record.variant)  # healthy for a moment each time
            if failure is not None:
                self._failures.setdefault(supervisor.record.config_name, failure[:_MAX_REASON_LENGTH])
        self._on_change()
        self.wake()

    def _wake_in(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self.wake)

    # The row

    async def _change(self, **changes: Any) -> None:
        await self._context.catalog.change_endpoint(self.name, **changes)

    async def _update_current(self, endpoint: Endpoint) -> None:
        count = self._count_healthy(endpoint.config_name)
        if count != endpoint.current:
            await self._change(current=count)

    async def _settle(self, endpoint: Endpoint, **changes: Any) -> None:
        """Write down that the endpoint has what it wants."""
        model_dirs = [supervisor.record.model_dir for supervisor in self.instances.values() if supervisor.is_healthy]
        await self._context.database.write(
            lambda db: db.execute(
                "INSERT INTO fleets VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET desired = excluded.desired, "
                "model_dir = coalesce(excluded.model_dir, model_dir)",
                (self.name, endpoint.desired, model_dirs[-1] if model_dirs else None),
            )
        )
        config = changes.get("config_name", endpoint.config_name)
        await self._change(current=self._count_healthy(config), failure_reason=None, **changes)
        self._failures_in_row, self._next_start_at = 0, 0.0
        self._backoff.reset()

    async def _last_desired(self) -> int:
        """Return the number of instances wanted when the endpoint was last InService."""
        row = await self._context.database.read(
            lambda db: db.execute("SELECT desired FROM fleets WHERE endpoint = ?", (self.name,)).fetchone()
        )
        return int(row["desired"]) if row else 1
