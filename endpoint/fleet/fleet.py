"""All instances of all endpoints. Knows no requests: the dispatcher decides which instance is given work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from endpoint.backend.clients import Clients
from endpoint.cloudwatch import container_logs
from endpoint.cloudwatch.container_logs import ContainerLogs
from endpoint.fleet import endpoint_reconciler, instance
from endpoint.fleet.endpoint_reconciler import EndpointReconciler
from endpoint.fleet.instance import Instance, Record, Records
from endpoint.fleet.instance_supervisor import FleetContext
from endpoint.fleet.models.model_cache import ModelCache
from endpoint.fleet.runners.make_runner import make_runner
from endpoint.fleet.runners.runner import Container, Runner, RunnerUnavailable
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog
from endpoint.state.database import Database

SCHEMA = instance.SCHEMA + container_logs.SCHEMA + endpoint_reconciler.SCHEMA

_LOG = logging.getLogger(__name__)

_RETRY_INTERVAL_S = 1.0
_LAST_LOGS_TIMEOUT_S = 5.0


class Fleet:
    """Owns an EndpointReconciler for each endpoint. Instances outlive it, unless `stop_all` ends them."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        catalog: Catalog,
        backend: Clients,
        echo: Callable[[str], None] | None = None,
        runner: Runner | None = None,
    ) -> None:
        """`echo` gets what the containers print, a line at a time. `runner` is by default the one of the settings."""
        settings = replace(settings, data_dir=settings.data_dir.absolute())
        self.in_flight: Counter[str] = Counter()
        """Number of requests in each instance by its ID, counted by the dispatcher. The least busy are ended first."""
        self.ended_busy: Counter[str] = Counter()
        """Number of instances that had requests when their endpoint needed fewer, by the endpoint's name."""
        self._context = FleetContext(
            settings=settings,
            database=database,
            catalog=catalog,
            backend=backend,
            records=Records(database),
            models=ModelCache(settings.data_dir / "models", backend),
            logs=ContainerLogs(database, backend, settings.instance_log_bytes, echo),
            runner=runner or make_runner(settings.runner, settings),
            in_flight=self.in_flight,
            ended_busy=self.ended_busy,
            stopping=asyncio.Event(),
        )
        self._reconcilers: dict[str, EndpointReconciler] = {}
        self._adoption_lock = asyncio.Lock()
        self._has_adopted = False
        self._woken = asyncio.Event()
        self._version = 0
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Adopt what an earlier gateway left, then look after all endpoints until cancelled. Never raises."""
        logs = asyncio.create_task(self._context.logs.run())
        try:
            while True:
                self._woken.clear()
                try:
                    await self._adopt()
                    await self._follow_catalog()
                except Exception:
                    _LOG.exception("The endpoints could not be looked at")
                    asyncio.get_running_loop().call_later(_RETRY_INTERVAL_S, self._woken.set)
                await self._woken.wait()
        finally:
            logs.cancel()
            await asyncio.gather(logs, return_exceptions=True)
            await self.close()

    def wake(self) -> None:
        """Look at the catalog's endpoints, which may have changed."""
        self._woken.set()
        for reconciler in self._reconcilers.values():
            reconciler.wake()

    def healthy(self, endpoint: str) -> list[Instance]:
        """Return the instances of the config that serves, which may be given work."""
        reconciler = self._reconcilers.get(endpoint)
        return [] if reconciler is None else reconciler.healthy()

    def serves(self, instance: Instance) -> bool:
        """Return whether an instance may be given work; one that ends may not."""
        return instance in self.healthy(instance.endpoint)

    @property
    def version(self) -> int:
        """Number that is another after each change of what `healthy` returns."""
        return self._version

    async def wait_for_change(self, since: int | None = None) -> int:
        """Return the version once it isn't `since`, by default the present one."""
        since = self._version if since is None else since
        while self._version == since:
            await self._changed.wait()
        return self._version

    async def stop_all(self) -> None:
        """End all instances, with SIGKILL after 30 s, and send their last lines.

        Endpoints stay as they are: the next gateway starts their instances.
        """
        await self.end_all()
        await self.send_last_logs()

    async def end_all(self) -> None:
        """End all instances, for which no backend is needed, and start no more. Without `run`, `close` comes after."""
        self._context.stopping.set()
        await self._adopt()
        await asyncio.gather(*(reconciler.end_all() for reconciler in self._reconcilers.values()))
        await self._context.runner.remove_others([])
        await self._context.runner.close()

    async def send_last_logs(self) -> None:
        """Make one attempt at sending what the containers have printed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._context.logs.send_all(), _LAST_LOGS_TIMEOUT_S)

    async def close(self) -> None:
        """Stop looking after the instances, which live on."""
        await asyncio.gather(*(reconciler.close() for reconciler in self._reconcilers.values()))

    async def _adopt(self) -> None:
        """Take over what an earlier gateway left, once. If this raises, the next call goes on."""
        async with self._adoption_lock:
            if self._has_adopted:
                return
            records, logs = self._context.records, self._context.logs
            self._context.models.remove_unfinished()
            rows = await records.all()
            await logs.load(record.id for record in rows)
            adopted = {name for reconciler in self._reconcilers.values() for name in reconciler.instances}
            for record in rows:
                if record.id in adopted:
                    continue
                if (container := await self._find(record)) is not None:
                    await records.change(record, pid=container.pid, identity=container.identity)
                    await self._reconciler(record.endpoint).adopt(record, container)
                else:
                    await logs.end(record.id)
                    await records.remove(record)
            await self._context.runner.remove_others([record.id for record in rows])
            self._has_adopted = True

    async def _find(self, record: Record) -> Container | None:
        """Return the container of an earlier gateway's instance, which may have had another runner."""
        if record.launched_at is None:
            return None
        settings, runner = self._context.settings, self._context.runner
        is_other = record.runner != settings.runner
        if is_other:
            runner = make_runner(record.runner, settings)
        log = settings.data_dir / "instances" / record.id / "log"
        try:
            return await runner.find(record.id, log, record.port or 0, record.pid, record.identity)
        except RunnerUnavailable as error:
            if not is_other:
                raise
            _LOG.warning("What is left of %s is not ended: %s", record.id, error)
            return None

    async def _follow_catalog(self) -> None:
        for name, reconciler in list(self._reconcilers.items()):
            if reconciler.is_gone:
                del self._reconcilers[name]
        for endpoint in await self._context.catalog.endpoints():
            self._reconciler(endpoint.name)
        for reconciler in self._reconcilers.values():
            reconciler.start()
        rows = await self._context.database.read(
            lambda db: db.execute("SELECT model_dir FROM instances UNION SELECT model_dir FROM fleets").fetchall()
        )
        await self._context.models.keep_only(Path(row["model_dir"]) for row in rows if row["model_dir"])

    def _reconciler(self, name: str) -> EndpointReconciler:
        if name not in self._reconcilers:
            self._reconcilers[name] = EndpointReconciler(name, self._context, self._note_change, self._woken.set)
        return self._reconcilers[name]

    def _note_change(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()
