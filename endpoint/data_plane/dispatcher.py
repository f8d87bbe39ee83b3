"""Gives waiting jobs to instances with room for them, first in, first out, and sees each to its end.

Nothing here is asked again and again: a job accepted, a job ended, a change of the fleet and the next end of a time to
wait wake it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol

from endpoint.data_plane.attempt import Attempt, DataLog, Redeliver
from endpoint.data_plane.container_client import ContainerClient
from endpoint.data_plane.delivery import Counts, Delivery, Notifications, Writes, until_written
from endpoint.data_plane.outcomes import failure
from endpoint.data_plane.storage import Source
from endpoint.fleet.instance import Instance
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog, Endpoint, NotFound
from endpoint.state.queue import Job, Outcome, Queue

_RETRY_S = 1.0
_MOST_UNDELIVERED = 64
"""Answers that S3 doesn't take yet: beyond it no new work is given."""
_LOOK_AGAIN_S = 60.0
"""For expired jobs, whatever is known of the next: the wall's clock may be set, and a machine may sleep."""

_FORGET_EVERY_S = 3600.0
_KEEP_DONE_S = 7 * 86400.0
"""What became of a request is known for so long."""

_LOG = logging.getLogger(__name__)


class Fleet(Protocol):
    def healthy(self, endpoint: str) -> list[Instance]: ...
    @property
    def version(self) -> int: ...
    async def wait_for_change(self, since: int | None = None) -> int: ...


class Storage(Writes, Protocol):
    async def open(self, location: str) -> Source: ...


class Dispatcher:
    """Owns who is busy with how much. The directory `answers` of data_dir is its own."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        queue: Queue,
        fleet: Fleet,
        storage: Storage,
        invoker: ContainerClient,
        notices: Notifications,
        metrics: Counts,
        data_log: DataLog,
    ) -> None:
        answers = settings.data_dir / "answers"
        self._settings = settings
        self._catalog = catalog
        self._queue = queue
        self._fleet = fleet
        self._invoker = invoker
        self._data_log = data_log
        self._answers = answers
        self._delivery = Delivery(settings, queue, storage, notices, metrics, answers)
        self._work = Attempt(settings, storage, invoker, metrics, data_log, answers)
        self._busy: Counter[str] = Counter()
        self._resting: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._forget_at = 0.0
        self._ending: set[str] = set()
        """Endpoints that are gone, whose waiting jobs are being told."""
        self._undelivered = 0
        self._may_give = asyncio.Event()
        self._may_expire = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled; never raises. What is in flight then waits again, or is delivered by the next run."""
        try:
            while not await self._guard(self._recover):
                await asyncio.sleep(_RETRY_S)
            self._spawn(self._follow_fleet())
            self._spawn(self._expire_all())
            while True:
                self._may_give.clear()
                await self._guard(self._give_all)
                await self._may_give.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._invoker.close()

    def wake(self) -> None:
        """A job was accepted, or an endpoint changed."""
        self._may_give.set()
        self._may_expire.set()

    def busy(self, instance_id: str) -> int:
        """Invocations in it."""
        return self._busy[instance_id]

    async def _guard(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Whether it went well. A failed step is tried again later."""
        try:
            await step()
            return True
        except Exception:
            _LOG.exception("The dispatcher failed; next attempt in %g s", _RETRY_S)
            asyncio.get_running_loop().call_later(_RETRY_S, self.wake)
            return False

    async def _recover(self) -> None:
        self._answers.mkdir(parents=True, exist_ok=True)
        decided = await self._queue.recover()
        kept = {outcome.file for _, outcome in decided}
        for path in self._answers.iterdir():
            if path.name not in kept:
                with contextlib.suppress(OSError):
                    path.unlink()
        for job, outcome in decided:
            self._spawn(self._deliver_old(job, outcome))

    async def _deliver_old(self, job: Job, outcome: Outcome) -> None:
        await self._delivery.deliver(job, outcome)

    async def _follow_fleet(self) -> None:
        version = self._fleet.version
        while True:
            version = await self._fleet.wait_for_change(version)
            self._may_give.set()

    # Giving work

    async def _give_all(self) -> None:
        endpoints = await self._catalog.endpoints()
        names = {endpoint.name for endpoint in endpoints}
        for name in await self._queue.awaited() - names - self._ending:
            self._ending.add(name)
            self._spawn(self._end_deleted(name))
        for endpoint in endpoints:
            if self._fleet.healthy(endpoint.name):
                with contextlib.suppress(NotFound):
                    await self._give(endpoint)

    async def _give(self, endpoint: Endpoint) -> None:
        config = (await self._catalog.deployment(endpoint, endpoint.config_name)).config
        if "AsyncInferenceConfig" not in config:
            return
        client = config["AsyncInferenceConfig"].get("ClientConfig", {})
        limit = client.get("MaxConcurrentInvocationsPerInstance", self._settings.concurrency)
        while self._undelivered < _MOST_UNDELIVERED and self._free(endpoint.name, limit) is not None:
            job = await self._queue.lease(endpoint.name)
            if job is None:
                return
            instance = self._free(endpoint.name, limit)  # it may have died meanwhile
            if instance is None:
                await self._release(job)
                return
            self._busy[instance.id] += 1
            self._spawn(self._see_to(job, instance))

    def _free(self, endpoint: str, limit: int) -> Instance | None:
        """The least loaded of those with room."""
        free = [
            instance
            for instance in self._fleet.healthy(endpoint)
            if self._busy[instance.id] < limit and instance.id not in self._resting
        ]
        return min(free, key=lambda instance: self._busy[instance.id], default=None)

    async def _see_to(self, job: Job, instance: Instance) -> None:
        try:
            outcome = await self._work.do(job, instance)
        except Redeliver:
            outcome = None
        finally:
            self._leave(instance)
        if outcome is None or outcome.kind == "no_answer":
            self._rest(instance)
        if outcome is None:
            await self._release(job)
        else:
            await self._end(job, outcome, instance)

    async def _end(self, job: Job, outcome: Outcome, instance: Instance | None) -> None:
        if not await until_written(lambda: self._queue.decide(job, outcome)):
            _LOG.warning("%s is somebody else's", job.inference_id)
            if outcome.file is not None:
                (self._answers / outcome.file).unlink(missing_ok=True)
            return
        self._undelivered += 1
        try:
            ended = await self._delivery.deliver(replace(job, body=None), outcome)
        finally:
            self._undelivered -= 1
            self._may_give.set()
        if ended != outcome and instance is not None:
            self._data_log.write(job.endpoint, job.variant, instance.id, job.inference_id, ended.reason or ended.kind)

    async def _release(self, job: Job) -> None:
        await until_written(lambda: self._queue.release(job))
        self._may_give.set()

    def _leave(self, instance: Instance) -> None:
        self._busy[instance.id] -= 1
        if not self._busy[instance.id]:
            del self._busy[instance.id]
        self._may_give.set()

    def _rest(self, instance: Instance) -> None:
        """Until the fleet has had time to see that it is dead: else it would be the ruin of the whole queue."""

        def over() -> None:
            self._resting.discard(instance.id)
            self._may_give.set()

        self._resting.add(instance.id)
        asyncio.get_running_loop().call_later(self._settings.ping_every_s, over)

    # Times to wait

    async def _expire_all(self) -> None:
        while True:
            self._may_expire.clear()
            await self._guard(self._expire)
            await self._guard(self._forget)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(await self._until_next_expiry()):
                    await self._may_expire.wait()

    async def _expire(self) -> None:
        while (next_at := await self._queue.next_expiry()) is not None and next_at <= time.time():
            await asyncio.gather(*(self._end_expired(job) for job in await self._queue.expire()))

    async def _forget(self) -> None:
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + _FORGET_EVERY_S
            await self._queue.prune(_KEEP_DONE_S)

    async def _until_next_expiry(self) -> float:
        try:
            next_at = await self._queue.next_expiry()
        except sqlite3.Error:
            return _RETRY_S
        return _LOOK_AGAIN_S if next_at is None else min(max(next_at - time.time(), 0.001), _LOOK_AGAIN_S)

    async def _end_deleted(self, name: str) -> None:
        try:
            while jobs := await self._queue.lease_all(name):
                await asyncio.gather(*(self._end(job, failure(job, "deleted"), None) for job in jobs))
        finally:
            self._ending.discard(name)

    async def _end_expired(self, job: Job) -> None:
        await self._end(job, failure(job, "expired"), None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("A job was left to the next run", exc_info=error)
