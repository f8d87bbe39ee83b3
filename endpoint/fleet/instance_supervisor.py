"""One instance from its model data to its end: started, pinged as SageMaker does, ended. Knows none of the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from endpoint.backend.clients import Clients
from endpoint.cloudwatch.container_logs import ContainerLogs
from endpoint.fleet import journal_bucket
from endpoint.fleet.instance import Instance, Record, Records
from endpoint.fleet.models.model_cache import ModelCache
from endpoint.fleet.models.model_source import ModelDataError, ModelSource
from endpoint.fleet.runners.runner import Container, ContainerSpec, Runner, RunnerUnavailable, StartFailed
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog, Deployment
from endpoint.state.database import Database

_LOG = logging.getLogger(__name__)

# https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
_PING_TIMEOUT_S = 2.0
_START_UP_S = 480.0
_DOWNLOAD_S = 3600.0
"""Seconds for model data by default; AWS documents no default."""
_MAX_PING_INTERVAL_AT_START_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetContext:
    """The parts that all endpoints and instances share."""

    settings: Settings
    database: Database
    catalog: Catalog
    backend: Clients
    records: Records
    models: ModelCache
    runner: Runner
    logs: ContainerLogs
    in_flight: Counter[str]
    """Number of requests in each instance, by its ID."""
    ended_busy: Counter[str]
    """Number of instances that had requests when their endpoint needed fewer, by the endpoint's name."""
    stopping: asyncio.Event
    """Set when no more instances are to be started."""


class InstanceSupervisor:
    """Owns the record, the container and the task of one instance.

    A container that ends while it starts is started again, `start_attempts` times within the start-up window. One that
    ends or misses pings later ends its instance, which another replaces.
    """

    def __init__(
        self,
        context: FleetContext,
        record: Record,
        deployment: Deployment | None,
        on_change: Callable[[InstanceSupervisor], None],
        container: Container | None = None,
    ) -> None:
        """Go on from the record and the container of an earlier gateway, if there is one. Without a deployment, end.

        `on_change` is called when the record's `state` has changed, and last when `has_ended` is true.
        """
        self.record = record
        self.failure: str | None = None
        """Reason why the instance never became healthy."""
        self.has_ended = False
        self.healthy_since: float | None = time.monotonic() if record.state == "healthy" else None
        self._context = context
        self._on_change = on_change
        self._container = container
        self._end_requested = asyncio.Event()
        if deployment is None or record.state == "ending":
            self.request_end()
        self.task = asyncio.create_task(self._run(deployment), name=record.id)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def instance(self) -> Instance:
        """The instance as others see it. It must have a container."""
        assert self._container is not None
        return Instance(id=self.id, endpoint=self.record.endpoint, variant=self.record.variant, url=self._container.url)

    @property
    def is_end_requested(self) -> bool:
        return self._end_requested.is_set()

    @property
    def is_ending(self) -> bool:
        return self.is_end_requested or self.record.state == "ending"

    @property
    def is_healthy(self) -> bool:
        return self.record.state == "healthy" and not self.is_ending

    def request_end(self) -> None:
        """Have the instance end; `has_ended` tells when it is done."""
        self._end_requested.set()

    async def _run(self, deployment: Deployment | None) -> None:
        serving = asyncio.create_task(self._serve(deployment))
        end_requested = asyncio.create_task(self._end_requested.wait())
        try:
            await asyncio.wait({serving, end_requested}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (serving, end_requested):
                task.cancel()
            await asyncio.wait({serving, end_requested})
        if not serving.cancelled() and (error := serving.exception()) is not None:
            self.failure = str(error)
            if not isinstance(error, StartFailed):
                self.failure = f"The local endpoint could not run the instance: {error!r}."
                _LOG.error("%s could not be run", self.id, exc_info=error)
        while not self.has_ended:
            try:
                await self._end()
            except RunnerUnavailable as error:
                _LOG.warning("%s could not be ended: %s", self.id, error)
                await asyncio.sleep(1)
            except Exception:
                _LOG.exception("%s could not be ended", self.id)
                await asyncio.sleep(1)

    async def _serve(self, deployment: Deployment | None) -> None:
        """Return when the container is dead or ill. Raises StartFailed."""
        if deployment is None or self.is_ending:
            return
        container = await self._start(deployment) if self.record.state == "starting" else self._container
        if container is not None:
            await self._watch(container)

    # Start

    async def _start(self, deployment: Deployment) -> Container:
        """Return the container once it answers pings. Raises StartFailed."""
        settings, variant = self._context.settings, deployment.variant
        window_s = settings.window_s(variant.get("ContainerStartupHealthCheckTimeoutInSeconds", _START_UP_S))
        container = self._container
        model_dir = Path(self.record.model_dir or "")
        if container is None:
            await self._context.runner.prepare(deployment)
            download_s = settings.window_s(variant.get("ModelDataDownloadTimeoutInSeconds", _DOWNLOAD_S))
            try:
                async with self._context.models.hold(ModelSource.of(deployment.container), download_s) as model_dir:
                    await self._context.records.change(self.record, model_dir=str(model_dir))
            except ModelDataError as error:
                raise StartFailed(str(error)) from error
        for attempt in range(settings.start_attempts):
            if container is None:
                await asyncio.sleep(attempt)
                container = await self._launch(deployment, model_dir)
            deadline = (self.record.launched_at or time.time()) + window_s
            if await self._wait_until_healthy(container, deadline):
                await self._context.records.change(self.record, state="healthy")
                self.healthy_since = time.monotonic()
                self._on_change(self)
                return container
            container = None
        raise StartFailed(ping_failure(self.record.variant))

    async def _launch(self, deployment: Deployment, model_dir: Path) -> Container:
        """Start the container. Raises StartFailed.

        It is written down before it happens: a gateway that is killed anywhere in here leaves no unknown container.
        """
        settings, records = self._context.settings, self._context.records
        journal_uri = journal_bucket.uri(settings, deployment, self.record.endpoint)
        if journal_uri is not None:
            await journal_bucket.make_bucket(settings, self._context.backend)
        launched_at = self.record.launched_at or time.time()
        directory = settings.data_dir / "instances" / self.id
        if self.record.launched_at is None:
            directory.mkdir(parents=True, exist_ok=True)
            await self._context.logs.follow(self.id, self.record.endpoint, self.record.variant, directory / "log")
        port = records.free_port()
        await records.change(self.record, port=port, pid=None, identity=None, launched_at=launched_at)
        spec = ContainerSpec(
            instance_id=self.id,
            slot=self.record.slot,
            endpoint=self.record.endpoint,
            deployment=deployment,
            model_dir=model_dir,
            port=port,
            journal_uri=journal_uri,
            log=directory / "log",
        )
        self._container = container = await self._context.runner.start(spec)
        await records.change(self.record, pid=container.pid, identity=container.identity)
        return container

    async def _wait_until_healthy(self, container: Container, deadline: float) -> bool:
        """Return False if the container ended, with nothing left of it. Raises StartFailed when time is over."""
        interval_s = min(self._context.settings.ping_every_s, _MAX_PING_INTERVAL_AT_START_S)
        async with _exit_of(container) as exited:
            while not exited.done():
                if await self._ping(container) and container.is_alive:
                    return True
                if time.time() > deadline:
                    raise StartFailed(ping_failure(self.record.variant))
                await asyncio.wait({exited}, timeout=interval_s)
        _LOG.warning("The container of %s ended as it started, with %s", self.id, container.end_reason)
        await container.kill()
        if time.time() > deadline:
            raise StartFailed(ping_failure(self.record.variant))
        return False

    # Life

    async def _watch(self, container: Container) -> None:
        """Return when the container has ended or missed too many pings."""
        settings = self._context.settings
        missed = 0
        async with _exit_of(container) as exited:
            while missed < settings.unhealthy_pings:
                await asyncio.wait({exited}, timeout=settings.ping_every_s)
                if exited.done():
                    _LOG.warning("The container of %s ended, with %s", self.id, container.end_reason)
                    return
                missed = 0 if await self._ping(container) else missed + 1
        _LOG.warning("%s missed %d pings in a row", self.id, missed)

    async def _ping(self, container: Container) -> bool:
        """Return whether the container answers with 200; only the status counts."""
        url, timeout = f"{container.url}/ping", aiohttp.ClientTimeout(total=_PING_TIMEOUT_S)
        try:
            async with aiohttp.request("GET", url, allow_redirects=False, timeout=timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    # End

    async def _end(self) -> None:
        ending_at = self.record.ending_at or time.time()
        self.record.state = "ending"
        self._on_change(self)
        await self._context.records.change(self.record, state="ending", ending_at=ending_at)
        if self._container is not None:
            grace_s = self._context.settings.stop_grace_s
            await self._container.end(min(ending_at + grace_s - time.time(), grace_s))  # the clock may be set back
        await self._context.logs.end(self.id)
        await self._context.records.remove(self.record)
        self.has_ended = True
        self._on_change(self)


@contextlib.asynccontextmanager
async def _exit_of(container: Container) -> AsyncIterator[asyncio.Task[None]]:
    exited = asyncio.create_task(container.wait())
    try:
        yield exited
    finally:
        exited.cancel()
        await asyncio.wait({exited})


def ping_failure(variant: str) -> str:
    """Return SageMaker's own FailureReason, word for word."""
    return (
        f"The primary container for production variant {variant} did not pass the ping health check. "
        "Please check CloudWatch logs for this endpoint."
    )
