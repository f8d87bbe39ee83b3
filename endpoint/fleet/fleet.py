"""All instances of all endpoints. Knows no requests: who is given work is the dispatcher's to say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from endpoint.backend.clients import Clients
from endpoint.cloudwatch import container_logs
from endpoint.cloudwatch.container_logs import ContainerLogs
from endpoint.fleet import endpoint_reconciler, instance
from endpoint.fleet.endpoint_reconciler import EndpointReconciler
from endpoint.fleet.instance import MARKER, Instance, Record, Records
from endpoint.fleet.instance_supervisor import FleetContext
from endpoint.fleet.models.model_cache import ModelCache
from endpoint.process import Process, find_session, kill_marked
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog
from endpoint.state.database import Database

SCHEMA = instance.SCHEMA + container_logs.SCHEMA + endpoint_reconciler.SCHEMA

_LOG = logging.getLogger(__name__)

_LAST_LOGS_S = 5.0


class Fleet:
    """Owns an EndpointReconciler for each endpoint. Instances outlive it, unless `stop_all` ends them."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        catalog: Catalog,
        backend: Clients,
        echo: Callable[[str], None] | None = None,
    ) -> None:
        """`echo` gets what the containers print, a line at a time."""
        self.busy: Callable[[str], int] = lambda instance_id: 0
        """Requests in an instance: of those that may be spared, the least busy are ended."""
        self._settings = settings = replace(settings, data_dir=settings.data_dir.absolute())
        self._database = database
        self._catalog = catalog
        self._backend = backend
        self._records = Records(database)
        self._files = ModelCache(settings.data_dir / "models", backend)
        self._logs = ContainerLogs(database, backend, settings.instance_log_bytes, echo)
        self._around: FleetContext | None = None
        self._beginning = asyncio.Lock()
        self._begun = False
        self._stopping = False
        self._fleets: dict[str, EndpointReconciler] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._version = 0
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Adopts what an earlier gateway left, then looks after it all until cancelled; never raises."""
        try:
            self._spawn(self._logs.run())
            while True:
                self._woken.clear()
                try:
                    await self._begin()
                    await self._look()
                except Exception:
                    _LOG.exception("The endpoints could not be looked at")
                    asyncio.get_running_loop().call_later(1, self._woken.set)
                await self._woken.wait()
        finally:
            await self.close()

    def wake(self) -> None:
        """The catalog's endpoints may have changed."""
        self._woken.set()
        for fleet in self._fleets.values():
            fleet.woken.set()

    def healthy(self, endpoint: str) -> list[Instance]:
        """Those of the config that serves, which may be given work."""
        fleet = self._fleets.get(endpoint)
        return [] if fleet is None else fleet.healthy()

    @property
    def version(self) -> int:
        """Another after each change of what `healthy` answers."""
        return self._version

    async def wait_for_change(self, since: int | None = None) -> int:
        """Returns the version when it is another than `since`, which without a word is the one now."""
        since = self._version if since is None else since
        while self._version == since:
            await self._changed.wait()
        return self._version

    async def stop_all(self) -> None:
        """SIGTERM to all, SIGKILL after 30 s. Endpoints stay as they are: the next gateway starts their instances."""
        runs = self._around is not None
        await self.end_all()
        await self.send_last_logs()
        if not runs:
            await self.close()

    async def end_all(self) -> None:
        """`stop_all` of the instances alone, which needs no backend. After it, without `run`, comes `close`."""
        self._stopping = True
        await self._begin()
        await asyncio.gather(*(fleet.stop() for fleet in self._fleets.values()))

    async def send_last_logs(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._logs.send_all(), _LAST_LOGS_S)

    async def _begin(self) -> None:
        async with self._beginning:
            if self._around is None:
                self._files.start()
                self._around = FleetContext(
                    settings=self._settings,
                    backend=self._backend,
                    records=self._records,
                    files=self._files,
                    logs=self._logs,
                    http=aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)),
                )
            if not self._begun:
                await self._adopt()
                self._begun = True

    async def close(self) -> None:
        tasks = self._tasks | {life.task for fleet in self._fleets.values() for life in fleet.lives.values()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._around is not None:
            await self._around.http.close()

    async def _adopt(self) -> None:
        records = await self._records.all()
        await self._logs.load(record.id for record in records)
        adopted = {life for fleet in self._fleets.values() for life in fleet.lives}
        for record in records:
            if record.id in adopted:  # the attempt before this one failed half-way
                continue
            if (process := await asyncio.to_thread(_find, record)) is not None:
                await self._records.change(record, pid=process.pid, identity=process.identity)
                await self._fleet(record.endpoint).adopt(record, process)
            else:
                await self._logs.end(record.id)
                await self._records.remove(record)

    async def _look(self) -> None:
        for name, fleet in list(self._fleets.items()):
            if fleet.gone:
                del self._fleets[name]
        for endpoint in await self._catalog.endpoints():
            self._fleet(endpoint.name)
        for fleet in self._fleets.values():
            if not fleet.runs:
                fleet.runs = True
                self._spawn(fleet.run())
        await self._files.keep_only(await self._used())

    async def _used(self) -> set[Path]:
        rows = await self._database.read(
            lambda db: db.execute("SELECT model_dir FROM instances UNION SELECT model_dir FROM fleets").fetchall()
        )
        return {Path(row["model_dir"]) for row in rows if row["model_dir"]}

    def _fleet(self, name: str) -> EndpointReconciler:
        assert self._around is not None
        if name not in self._fleets:
            fleet = self._fleets[name] = EndpointReconciler(
                name,
                self._around,
                self._database,
                self._catalog,
                lambda instance_id: self.busy(instance_id),
                self._tell,
                self._woken.set,
            )
            fleet.stopping = self._stopping
        return self._fleets[name]

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()


async def end_unrecorded(settings: Settings) -> None:
    """Instances of a data directory whose database can't be read: those that have a directory there."""

    async def end(instance: str) -> None:
        if (process := await asyncio.to_thread(find_session, MARKER, instance)) is not None:
            await process.end(settings.stop_grace_s)

    await asyncio.gather(*(end(path.name) for path in (settings.data_dir / "instances").glob("*")))


def _find(record: Record) -> Process | None:
    """The living process of a record. Of a dead one, or if it can't be told which it is, all that is left is killed."""
    if record.launched_at is None:
        return None
    if record.pid is None or record.identity is None:
        process = find_session(MARKER, record.id)
    else:
        process = Process(record.pid, record.identity)
    if process is not None and process.is_alive:
        return process
    if process is not None:
        asyncio.run(process.kill())
    asyncio.run(kill_marked(MARKER, record.id))
    return None
