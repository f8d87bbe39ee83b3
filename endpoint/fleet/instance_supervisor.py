"""One instance from its model data to its end: started, pinged as SageMaker does, ended. Knows none of the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from endpoint.backend.clients import Clients
from endpoint.cloudwatch.container_logs import ContainerLogs
from endpoint.fleet import journal_bucket
from endpoint.fleet.instance import MARKER, Record, Records, environment
from endpoint.fleet.models.model_cache import ModelCache
from endpoint.fleet.models.model_source import ModelDataError, ModelSource
from endpoint.process import Process, kill_marked
from endpoint.settings import Settings
from endpoint.state.catalog import Deployment

_LOG = logging.getLogger(__name__)

# https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
_PING_S = 2.0
_START_UP_S = 480.0
_DOWNLOAD_S = 3600.0
"""AWS names no default."""
_PING_AT_START_S = 0.5


class StartFailed(Exception):
    """Its text is the endpoint's FailureReason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetContext:
    """What all instances share."""

    settings: Settings
    backend: Clients
    records: Records
    files: ModelCache
    logs: ContainerLogs
    http: aiohttp.ClientSession


class InstanceSupervisor:
    """Owns the record, the process and the task that leads its life. `on_change` is called when `state` has changed,
    and last when `over` is true.

    A process that ends while it starts is started again, `start_attempts` times within the start-up window. One that
    ends or misses pings later is at its life's end: another instance replaces it.
    """

    def __init__(
        self,
        around: FleetContext,
        record: Record,
        deployment: Deployment | None,
        on_change: Callable[[InstanceSupervisor], None],
        process: Process | None = None,
    ) -> None:
        """With a `process` of an earlier gateway, goes on from there. Without a `deployment`, all it can do is end."""
        self.record = record
        self.failure: str | None = None
        """Why it never became healthy."""
        self.over = False
        self.healthy_since: float | None = time.monotonic() if record.state == "healthy" else None
        self._around = around
        self._deployment = deployment
        self._on_change = on_change
        self._process = process
        self._end_asked = asyncio.Event()
        if deployment is None or record.state == "ending":
            self.end()
        self.task = asyncio.create_task(self._lead(), name=record.id)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def ending(self) -> bool:
        return self._end_asked.is_set() or self.record.state == "ending"

    @property
    def healthy(self) -> bool:
        return self.record.state == "healthy" and not self.ending

    @property
    def end_asked(self) -> bool:
        return self._end_asked.is_set()

    def end(self) -> None:
        """Asks; `over` says when it is done."""
        self._end_asked.set()

    async def _lead(self) -> None:
        life = asyncio.create_task(self._live())
        asked = asyncio.create_task(self._end_asked.wait())
        try:
            await asyncio.wait({life, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (life, asked):
                task.cancel()
            await asyncio.wait({life, asked})
        if not life.cancelled() and (error := life.exception()) is not None:
            self.failure = str(error)
            if not isinstance(error, StartFailed):
                self.failure = f"The local endpoint could not run the instance: {error!r}."
                _LOG.error("The life of %s went wrong", self.id, exc_info=error)
        while not self.over:
            try:
                await self._end()
            except Exception:
                _LOG.exception("%s could not be ended", self.id)
                await asyncio.sleep(1)

    async def _live(self) -> None:
        if self.ending:
            return
        if self.record.state == "starting":
            await self._start()
        await self._stay_healthy()

    # Start

    async def _start(self) -> None:
        window_s = self._window("ContainerStartupHealthCheckTimeoutInSeconds", _START_UP_S)
        model_dir = None if self._process else await self._lay_out()
        for attempt in range(self._around.settings.start_attempts):
            if model_dir is not None:
                if attempt:
                    await asyncio.sleep(attempt)
                await self._launch(model_dir)
            assert self.record.launched_at is not None
            if await self._becomes_healthy(self.record.launched_at + window_s):
                await self._set_healthy()
                return
            model_dir = Path(self.record.model_dir or "")
        raise StartFailed(no_ping(self.record.variant))

    def _window(self, name: str, default_s: float) -> float:
        assert self._deployment is not None
        return self._around.settings.window_s(self._deployment.variant.get(name, default_s))

    async def _lay_out(self) -> Path:
        assert self._deployment is not None
        within_s = self._window("ModelDataDownloadTimeoutInSeconds", _DOWNLOAD_S)
        try:
            source = ModelSource.of(self._deployment.container)
            async with self._around.files.laid_out(source, within_s) as directory:
                await self._around.records.change(self.record, model_dir=str(directory))
        except ModelDataError as error:
            raise StartFailed(str(error)) from error
        return directory

    async def _launch(self, model_dir: Path) -> None:
        """Written down before it happens: a gateway that is killed anywhere in here leaves no unknown process."""
        assert self._deployment is not None
        settings = self._around.settings
        if journal_bucket.uri(settings, self._deployment, self.record.endpoint) is not None:
            await journal_bucket.make_bucket(settings, self._around.backend)
        launched_at = self.record.launched_at or time.time()
        directory = settings.data_dir / "instances" / self.id
        if self.record.launched_at is None:
            directory.mkdir(parents=True, exist_ok=True)
            await self._around.logs.follow(self.id, self.record.endpoint, self.record.variant, directory / "log")
        await self._around.records.change(
            self.record, port=self._around.records.free_port(), pid=None, identity=None, launched_at=launched_at
        )
        given = environment(settings, self.record, self._deployment, model_dir)
        try:
            self._process = Process.start(settings.serve, given, directory / "log")
        except (OSError, ValueError) as error:
            raise StartFailed(f"The container could not be started: {error}.") from error
        await self._around.records.change(self.record, pid=self._process.pid, identity=self._process.identity)

    async def _becomes_healthy(self, deadline: float) -> bool:
        """False if the process ended, with nothing left of it. Raises StartFailed when time is over."""
        assert self._process is not None
        every_s = min(self._around.settings.ping_every_s, _PING_AT_START_S)
        async with _exit_of(self._process) as exited:
            while not exited.done():
                if await self._ping() and self._process.is_alive:
                    return True
                if time.time() > deadline:
                    raise StartFailed(no_ping(self.record.variant))
                await asyncio.wait({exited}, timeout=every_s)
        _LOG.warning("The container of %s ended as it started, with exit code %s", self.id, self._process.exit_code)
        await self._process.kill()
        if time.time() > deadline:
            raise StartFailed(no_ping(self.record.variant))
        return False

    async def _set_healthy(self) -> None:
        await self._around.records.change(self.record, state="healthy")
        self.healthy_since = time.monotonic()
        self._on_change(self)

    # Life

    async def _stay_healthy(self) -> None:
        assert self._process is not None
        settings = self._around.settings
        missed = 0
        async with _exit_of(self._process) as exited:
            while missed < settings.unhealthy_pings:
                await asyncio.wait({exited}, timeout=settings.ping_every_s)
                if exited.done():
                    _LOG.warning("The container of %s ended, with exit code %s", self.id, self._process.exit_code)
                    return
                missed = 0 if await self._ping() else missed + 1
        _LOG.warning("%s missed %d pings in a row", self.id, missed)

    async def _ping(self) -> bool:
        """Only the status counts."""
        try:
            async with self._around.http.get(
                f"{self.record.url}/ping", allow_redirects=False, timeout=aiohttp.ClientTimeout(total=_PING_S)
            ) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    # End

    async def _end(self) -> None:
        ending_at = self.record.ending_at or time.time()
        self.record.state = "ending"
        self._on_change(self)
        await self._around.records.change(self.record, state="ending", ending_at=ending_at)
        if self._process is not None:
            grace_s = self._around.settings.stop_grace_s
            await self._process.end(min(ending_at + grace_s - time.time(), grace_s))  # the clock may be set back
            await kill_marked(MARKER, self.id)
        await self._around.logs.end(self.id)
        await self._around.records.remove(self.record)
        self.over = True
        self._on_change(self)


@contextlib.asynccontextmanager
async def _exit_of(process: Process) -> AsyncIterator[asyncio.Task[None]]:
    exited = asyncio.create_task(process.wait())
    try:
        yield exited
    finally:
        exited.cancel()
        await asyncio.wait({exited})


def no_ping(variant: str) -> str:
    """What SageMaker says, word for word."""
    return (
        f"The primary container for production variant {variant} did not pass the ping health check. "
        "Please check CloudWatch logs for this endpoint."
    )
