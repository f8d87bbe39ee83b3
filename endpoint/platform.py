"""Everything of one data directory, put together and run: what `python -m endpoint up` starts."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil

from endpoint.aws.service import Answer, Service
from endpoint.backend.backend import Backend, BackendError
from endpoint.cloudwatch.data_log import DataLog
from endpoint.cloudwatch.metrics import Metrics
from endpoint.control_plane.control import ControlPlane
from endpoint.data_plane.container_client import ContainerClient
from endpoint.data_plane.dispatcher import Dispatcher
from endpoint.data_plane.notifications import Notifications
from endpoint.data_plane.runtime import Runtime
from endpoint.data_plane.storage import Storage
from endpoint.fleet import fleet
from endpoint.fleet.fleet import Fleet
from endpoint.gateway.gateway import Handler, Request, make_app, make_server
from endpoint.process import identity_of
from endpoint.settings import Settings
from endpoint.state import catalog, queue
from endpoint.state.catalog import Catalog
from endpoint.state.database import Database
from endpoint.state.queue import Queue
from endpoint.terminal import Terminal

logger = logging.getLogger(__name__)

SCHEMAS = (catalog.SCHEMA, queue.SCHEMA, fleet.SCHEMA)

_GATEWAY_END_S = 10.0
_END_S = 5.0
_UP_END_S = 90.0
"""More than `up` needs where an instance and the backend both have to be killed."""
_LOCK_S = 2.0
"""A process that ended keeps its lock until its last thread has, too."""


class CannotRun(Exception):
    """The message says why, and what to do."""


Leave = Callable[[int], NoReturn]
"""Ends this process at once with a status: no thread that hangs in a dead backend can hold it."""


def up(settings: Settings, terminal: Terminal, leave: Leave) -> None:
    """Until SIGINT or SIGTERM. What the containers print goes to the terminal. Raises CannotRun."""
    with _only_one(settings.data_dir, for_up=True), _bound(settings) as sock:
        asyncio.run(_up(settings, sock, terminal, leave))


@contextlib.contextmanager
def _only_one(data_dir: Path, *, for_up: bool) -> Iterator[None]:
    """The lock's file says which process is `up`, for `down`."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("a")
    except OSError as error:
        raise CannotRun(f"can't keep anything in {data_dir}: {error}") from error
    with lock:
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise CannotRun(f"{data_dir} is in use by another `python -m endpoint`") from error
                time.sleep(0.05)
        lock.truncate(0)
        if for_up:
            json.dump({"pid": os.getpid(), "identity": identity_of(os.getpid())}, lock)
            lock.flush()
        yield


@contextlib.contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((settings.host, settings.port))
        except OSError as error:
            raise CannotRun(f"can't listen on {settings.url}: {error.strerror}; --port takes another") from error
        sock.listen(2048)
        yield sock


async def _up(settings: Settings, sock: socket.socket, terminal: Terminal, leave: Leave) -> None:
    over = asyncio.Event()
    _on_signals(over.set)  # before there is anything to end: a signal in the beginning ends it when it has begun
    settings.save()
    (settings.data_dir / "answers").mkdir(exist_ok=True)
    database = _open_database(settings.data_dir)
    backend = Backend(settings)
    try:
        await backend.start()
    except BackendError as error:
        raise CannotRun(str(error)) from error
    platform = Platform(settings, backend, database, terminal)
    try:
        status = await platform.run(sock, over, leave)
    except Exception:
        logger.exception("ended by a mistake of its own; `down` ends what is left")
        status = 1
    database.close()
    leave(status)


def _open_database(data_dir: Path) -> Database:
    path = data_dir / "endpoint.sqlite"
    try:
        return Database(path, *SCHEMAS)
    except sqlite3.Error as error:
        raise CannotRun(f"{path} can't be used as the database: {error}") from error


class Platform:
    """Owns the parts. They outlive nothing: what must is in the database, in files, or a process of its own."""

    def __init__(self, settings: Settings, backend: Backend, database: Database, terminal: Terminal) -> None:
        self._backend = backend
        self._catalog = Catalog(database)
        self._queue = Queue(database)
        self._fleet = Fleet(settings, database, self._catalog, backend, echo=terminal.put)
        self._metrics = Metrics(settings, backend, self._catalog, self._queue, self._fleet)
        self._notices = Notifications(settings, database, self._catalog, backend, self._metrics)
        self._data_log = DataLog(settings, backend)
        invoker = ContainerClient(settings)
        self._dispatcher = Dispatcher(
            settings,
            self._catalog,
            self._queue,
            self._fleet,
            Storage(settings, backend),
            invoker,
            self._notices,
            self._metrics,
            self._data_log,
        )
        self._fleet.busy = self._dispatcher.busy
        control = ControlPlane(settings, self._catalog, self._fleet, self._changed)
        runtime = Runtime(settings, self._catalog, self._queue, self._fleet, self._dispatcher, invoker)
        routes = {
            "sagemaker": _handler(Service("sagemaker"), control.call),
            "sagemaker-runtime": _handler(Service("sagemaker-runtime"), runtime.call),
        }
        self._server = make_server(make_app(settings, backend, routes))
        self._url = settings.url

    async def run(self, sock: socket.socket, over: asyncio.Event, leave: Leave) -> int:
        """Until `over`; then nothing new, and all of it ended, the backend last, so that it saves its state."""
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in {
                "gateway": self._server.serve([sock]),
                "backend": self._backend.watch(),
                "fleet": self._fleet.run(),
                "dispatcher": self._dispatcher.run(),
                "notices": self._notices.run(),
                "metrics": self._metrics.run(),
                "data log": self._data_log.run(),
            }.items()
        ]
        gateway, *others = tasks
        logger.info("AWS's API is on %s", self._url)
        ended = asyncio.create_task(over.wait())
        await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
        broken = [task for task in tasks if task.done()]
        for task in broken:
            logger.error("%s ended: %r", task.get_name(), task.exception())
        logger.info("ending: instances first; Ctrl-C once more leaves them to `down`")
        _on_signals(lambda: leave(130))
        self._server.should_exit = True
        await asyncio.wait([gateway], timeout=_GATEWAY_END_S)
        await _cancel([task for task in others if task.get_name() == "dispatcher"])
        await self._fleet.stop_all()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._metrics.flush(), _END_S)
        await _cancel(others)
        await self._backend.stop()
        return 1 if broken else 0

    async def _changed(self, endpoint: str) -> None:
        await self._notices.test(endpoint)
        self._dispatcher.wake()


def _handler(service: Service, call: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]) -> Handler:
    async def handle(request: Request) -> Answer:
        body = await request.body()
        return await service.respond(call, request.method, request.path, request.headers, request.query, body)

    return handle


def _on_signals(act: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, act)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    """Waits for their ends, but not for long."""
    for task in tasks:
        task.cancel()
    _, slow = await asyncio.wait(tasks, timeout=_END_S)
    for task in slow:
        logger.warning("%s does not end: left", task.get_name())


async def down(data_dir: Path, leave: Leave) -> None:
    """Ends a living `up`, or the instances and the backend that a killed one left. Raises CannotRun."""
    await _end_up(data_dir / "lock")
    try:
        settings = Settings.load(data_dir)
    except OSError as error:
        raise CannotRun(f"no endpoint was up in {data_dir}") from error
    except (ValueError, TypeError) as error:
        raise CannotRun(f"{data_dir} has settings that this version can't read ({error}): start `up` first") from error
    with _only_one(data_dir, for_up=False):
        await _sweep(settings)
        leave(0)


async def _end_up(lock: Path) -> None:
    try:
        holder = json.loads(lock.read_text())
        pid, identity = int(holder["pid"]), holder["identity"]
        command = psutil.Process(pid).cmdline()
    except (OSError, ValueError, TypeError, KeyError, psutil.Error):
        return
    if identity_of(pid) != identity or not any("endpoint" in part for part in command):
        return
    logger.info("ending `up`, pid %d", pid)
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise CannotRun(f"`up` (pid {pid}) is another user's") from error
    deadline = time.monotonic() + _UP_END_S
    while identity_of(pid) == identity:
        if time.monotonic() > deadline:
            raise CannotRun(f"`up` (pid {pid}) does not end: kill it (kill -9 {pid}), then `down` again")
        await asyncio.sleep(0.1)


async def _sweep(settings: Settings) -> None:
    """Instances first: they need no backend to end."""
    backend = Backend(settings)
    try:
        database = _open_database(settings.data_dir)
    except CannotRun:
        await fleet.end_unrecorded(settings)
        await backend.stop()
        raise
    left = Fleet(settings, database, Catalog(database), backend)
    await left.end_all()
    try:
        await backend.start()  # for the last lines of the instances
        await left.send_last_logs()
    except (BackendError, OSError) as error:
        logger.warning("%s: the instances' last lines wait for the next `up`", error)
    await left.close()
    await backend.stop()
    database.close()
