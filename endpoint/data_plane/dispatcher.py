"""Gives waiting jobs to instances with room for them, first in, first out, and sees each to its end.

Nothing here is polled: a job accepted, a job ended, a change of the fleet and the next expiry wake it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from endpoint.data_plane.attempt import Attempt
from endpoint.data_plane.delivery import Delivery
from endpoint.data_plane.outcomes import failure
from endpoint.fleet.fleet import Fleet
from endpoint.fleet.instance import Instance
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog, Endpoint, NotFound
from endpoint.state.queue import Job, Outcome, Queue

_RETRY_INTERVAL_S = 1.0
_MAX_UNDELIVERED = 64
"""Number of answers that S3 doesn't take yet, beyond which no new work is given."""
_MAX_EXPIRY_WAIT_S = 60.0
"""Seconds after which expired jobs are looked for in any case: the clock may be set, and a machine may sleep."""
_PRUNE_INTERVAL_S = 3600.0
_KEEP_DONE_S = 7 * 86400.0
"""Seconds for which the row of a done job is kept."""

_LOG = logging.getLogger(__name__)


class Dispatcher:
    """Decides which instance gets which job. An `Attempt` then makes an outcome of it, which `Delivery` delivers."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        queue: Queue,
        fleet: Fleet,
        make_attempt: Callable[[Job, Instance], Attempt],
        delivery: Delivery,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._queue = queue
        self._fleet = fleet
        self._make_attempt = make_attempt
        self._delivery = delivery
        self._resting: set[str] = set()
        """IDs of the instances that have just failed and get no work for a moment."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: set[str] = set()
        """Names of the deleted endpoints whose waiting jobs are being ended."""
        self._may_give = asyncio.Event()
        self._may_expire = asyncio.Event()

    async def run(self) -> None:
        """Dispatch until cancelled. Never raises. The next run gives again, or delivers, what was in flight."""
        has_recovered = False
        try:
            while True:
                try:
                    if not has_recovered:
                        for job, outcome in await self._delivery.recover():
                            self._spawn(self._delivery.deliver(job, outcome))
                        has_recovered = True
                        self._spawn(self._follow_fleet())
                        self._spawn(self._end_expired())
                    self._may_give.clear()
                    await self._give_all()
                    await self._may_give.wait()
                except Exception:
                    _LOG.exception("The dispatcher failed; next attempt in %g s", _RETRY_INTERVAL_S)
                    await asyncio.sleep(_RETRY_INTERVAL_S)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look at once: a job was accepted, or an endpoint changed."""
        self._may_give.set()
        self._may_expire.set()

    async def _follow_fleet(self) -> None:
        version = self._fleet.version
        while True:
            version = await self._fleet.wait_for_change(version)
            self._may_give.set()

    # Giving work

    async def _give_all(self) -> None:
        endpoints = await self._catalog.endpoints()
        names = {endpoint.name for endpoint in endpoints}
        for name in await self._queue.waiting_endpoints() - names - self._ending:
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
        while self._delivery.undelivered < _MAX_UNDELIVERED and self._free_instance(endpoint.name, limit) is not None:
            job = await self._queue.lease(endpoint.name)
            if job is None:
                return
            instance = self._free_instance(endpoint.name, limit)  # the one before may have died meanwhile
            if instance is None:
                await self._release(job)
                return
            self._fleet.in_flight[instance.id] += 1
            self._spawn(self._process(job, instance))

    def _free_instance(self, endpoint: str, limit: int) -> Instance | None:
        """Return the least loaded instance with room, or None."""
        in_flight = self._fleet.in_flight
        free = [
            instance
            for instance in self._fleet.healthy(endpoint)
            if in_flight[instance.id] < limit and instance.id not in self._resting
        ]
        return min(free, key=lambda instance: in_flight[instance.id], default=None)

    async def _process(self, job: Job, instance: Instance) -> None:
        """See a leased job to its end, or back into the queue."""

        def resume() -> None:
            self._resting.discard(instance.id)
            self._may_give.set()

        try:
            outcome = await self._make_attempt(job, instance).run()
        finally:
            in_flight = self._fleet.in_flight
            in_flight[instance.id] -= 1
            if not in_flight[instance.id]:
                del in_flight[instance.id]
            self._may_give.set()
        if outcome is None or outcome.kind == "no_answer":
            # A dead instance is quick to fail, and would drain the queue before the fleet sees that it is dead.
            self._resting.add(instance.id)
            asyncio.get_running_loop().call_later(self._settings.ping_every_s, resume)
        if outcome is None:
            await self._release(job)
        else:
            await self._end(job, outcome, instance)

    async def _end(self, job: Job, outcome: Outcome, instance: Instance | None = None) -> None:
        try:
            await self._delivery.end(job, outcome, None if instance is None else instance.id)
        finally:
            self._may_give.set()

    async def _release(self, job: Job) -> None:
        await self._queue.release(job)
        self._may_give.set()

    # Ending what was given to no instance

    async def _end_expired(self) -> None:
        """End jobs whose time to wait is over, and forget old ones, until cancelled."""
        prune_at = 0.0
        while True:
            self._may_expire.clear()
            wait_s = _RETRY_INTERVAL_S
            try:
                while (next_at := await self._queue.next_expiry()) is not None and next_at <= time.time():
                    jobs = await self._queue.lease_expired()
                    await asyncio.gather(*(self._end(job, failure(job, "expired")) for job in jobs))
                if time.monotonic() >= prune_at:
                    prune_at = time.monotonic() + _PRUNE_INTERVAL_S
                    await self._queue.prune(_KEEP_DONE_S)
                wait_s = _MAX_EXPIRY_WAIT_S if next_at is None else min(next_at - time.time(), _MAX_EXPIRY_WAIT_S)
            except Exception:
                _LOG.exception("Expired jobs could not be ended; next attempt in %g s", wait_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._may_expire.wait()

    async def _end_deleted(self, name: str) -> None:
        try:
            while jobs := await self._queue.lease_all(name):
                await asyncio.gather(*(self._end(job, failure(job, "deleted")) for job in jobs))
        finally:
            self._ending.discard(name)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        def forget(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                _LOG.error("A job was left to the next run", exc_info=error)

        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(forget)
