"""The parts of the endpoint, wired together and run: everything of one data directory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any

from starlette.responses import Response

from endpoint.alarms.actions import Actions
from endpoint.alarms.alarms import Alarms
from endpoint.alarms.evaluator import Evaluator
from endpoint.alarms.firing import Firing, FiringResult
from endpoint.alarms.notice_sender import NoticeSender
from endpoint.alarms.series import Series
from endpoint.alarms.store import AlarmStore
from endpoint.autoscaling.scaling import Scaling
from endpoint.aws.service import Service
from endpoint.backend.backend import Backend
from endpoint.cloudwatch.data_log import DataLog
from endpoint.cloudwatch.metrics import Metrics
from endpoint.control_plane.control import ControlPlane
from endpoint.data_plane.attempt import Attempt
from endpoint.data_plane.container_client import ContainerClient
from endpoint.data_plane.delivery import Delivery
from endpoint.data_plane.dispatcher import Dispatcher
from endpoint.data_plane.notifications import Notifications
from endpoint.data_plane.runtime import Runtime
from endpoint.data_plane.storage import Storage
from endpoint.fleet.fleet import Fleet
from endpoint.fleet.runners.runner import Bridge, Runner
from endpoint.gateway.gateway import Gateway, Handler, make_server
from endpoint.gateway.monitoring import Monitoring
from endpoint.gateway.request import Request
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog
from endpoint.state.database import Database
from endpoint.state.outbox import Outbox
from endpoint.state.queue import Queue
from endpoint.terminal import Terminal

logger = logging.getLogger(__name__)

_GATEWAY_CLOSE_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 5.0


class Platform:
    """The parts of one data directory, wired together.

    They outlive nothing: what must is in the database, in files, or a process of its own.
    """

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        database: Database,
        terminal: Terminal,
        runner: Runner,
        bridge: Bridge | None = None,
    ) -> None:
        """The gateway answers at `bridge`, too: give its socket to `run`."""
        self._backend = backend
        self._catalog = Catalog(database)
        self._queue = Queue(database)
        self._fleet = Fleet(settings, database, self._catalog, backend, echo=terminal.put, runner=runner)
        series = Series(settings)
        self._metrics = Metrics(
            settings,
            backend,
            self._catalog,
            self._queue,
            lambda endpoint: len(self._fleet.healthy(endpoint)),
            lambda namespace, data: series.record(namespace, data, time.time()),
        )
        alarms = self._wire_alarms(settings, backend, database, series)
        self._notifications = Notifications(settings, Outbox(database), self._catalog, backend, self._metrics)
        self._data_log = DataLog(backend)
        self._containers = ContainerClient()
        runtime = self._wire_data_plane(settings, backend)
        self._wire_control_plane(settings, database, alarms)
        routes = {
            "sagemaker": _handler(Service("sagemaker"), self._control.call),
            "sagemaker-runtime": _handler(Service("sagemaker-runtime"), runtime.call),
            "application-autoscaling": _handler(Service("application-autoscaling"), self._scaling.operations.call),
            "monitoring": Monitoring(alarms.call, lambda parameters: series.put(parameters, time.time())).handle,
        }
        self._gateway = Gateway(settings, backend, routes, {} if bridge is None else {bridge.address: bridge.subnet})
        self._server = make_server(self._gateway)
        self._url = settings.url

    def _wire_alarms(self, settings: Settings, backend: Backend, database: Database, series: Series) -> Alarms:
        store = AlarmStore(database)
        self._alarm_notices = NoticeSender(store, backend)
        actions = Actions(store, self._act)
        self._evaluator = Evaluator(settings, store, series, actions, self._alarm_notices.wake)
        return Alarms(settings, store, actions, self._alarm_notices.wake)

    def _wire_data_plane(self, settings: Settings, backend: Backend) -> Runtime:
        storage = Storage(backend)
        delivery = Delivery(settings, self._queue, storage, self._notifications, self._metrics, self._data_log)
        make_attempt = partial(
            Attempt,
            settings,
            storage,
            self._containers,
            self._metrics,
            self._data_log,
            delivery.answers,
            self._fleet.serves,
        )
        self._dispatcher = Dispatcher(settings, self._catalog, self._queue, self._fleet, make_attempt, delivery)
        return Runtime(settings, self._catalog, self._queue, self._fleet, self._dispatcher, self._containers)

    def _wire_control_plane(self, settings: Settings, database: Database, alarms: Alarms) -> None:
        self._scaling = Scaling(
            settings,
            database,
            self._catalog,
            self._call_control,
            alarms,
            count_ended_busy=self._fleet.ended_busy.__getitem__,
        )
        self._control = ControlPlane(
            settings,
            self._catalog,
            self._fleet.wake,
            self._announce,
            is_registered=self._scaling.operations.is_registered,
            deregister=self._scaling.operations.deregister_endpoint,
        )

    async def run(self, socks: list[socket.socket], stop: asyncio.Event) -> bool:
        """Serve at the sockets until `stop` is set or a part ends by itself. Returns whether it was `stop`."""
        self._tasks = {
            name: asyncio.create_task(work, name=name)
            for name, work in {
                "gateway": self._server.serve(socks),
                "backend": self._backend.watch(),
                "fleet": self._fleet.run(),
                "dispatcher": self._dispatcher.run(),
                "notifications": self._notifications.run(),
                "metrics": self._metrics.run(),
                "alarms": self._evaluator.run(),
                "alarm notices": self._alarm_notices.run(),
                "data log": self._data_log.run(),
                "scaling": self._scaling.run(),
            }.items()
        }
        logger.info("AWS's API is on %s", self._url)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped, *self._tasks.values()], return_when=asyncio.FIRST_COMPLETED)
        failed = [task for task in self._tasks.values() if task.done()]
        for task in failed:
            logger.error("%s ended: %r", task.get_name(), task.exception())
        return not failed

    async def close(self) -> None:
        """Accept nothing new, then end all, the backend last, so that it saves its state.

        The gateway outlives the instances: their journals' last records go through it.
        """
        self._gateway.accept_nothing_new()
        await _cancel([self._tasks.pop(name) for name in ("dispatcher", "alarms", "scaling")])
        await self._fleet.stop_all()
        self._server.should_exit = True
        await asyncio.wait([self._tasks.pop("gateway")], timeout=_GATEWAY_CLOSE_TIMEOUT_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._metrics.flush(), _CLOSE_TIMEOUT_S)
        await _cancel(self._tasks.values())
        await self._containers.close()
        await self._backend.stop()

    async def _act(self, firings: Sequence[Firing]) -> Sequence[FiringResult]:
        return await self._scaling.act(firings)

    async def _call_control(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        return await self._control.call(operation, parameters)

    async def _announce(self, endpoint: str) -> None:
        await self._notifications.send_test(endpoint)
        self._dispatcher.wake()


def _handler(service: Service, call: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]) -> Handler:
    async def handle(request: Request) -> Response:
        return await service.respond(call, await request.whole())

    return handle


async def _cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel them and wait for their ends, but not for long."""
    for task in tasks:
        task.cancel()
    _, slow = await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT_S)
    for task in slow:
        logger.warning("%s does not end and is left behind", task.get_name())
