"""Everything of one data directory, put together and run: what `python -m endpoint up` starts."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from . import catalog, fleet, queue
from .aws_model import Answer, Service
from .backend import Backend, BackendError
from .catalog import Catalog
from .control import Control
from .data_log import DataLog
from .database import Database
from .dispatcher import Dispatcher
from .fleet import Fleet
from .gateway import Handler, Request, make_app, make_server
from .invoker import Invoker
from .metrics import Metrics
from .notices import Notices
from .queue import Queue
from .runtime import Runtime
from .settings import Settings
from .storage import Storage
from .terminal import Terminal

logger = logging.getLogger(__name__)

SCHEMAS = (catalog.SCHEMA, queue.SCHEMA, fleet.SCHEMA)


class CannotRun(Exception):
    """The message says why, and what to do."""


def up(settings: Settings, terminal: Terminal) -> int:
    """Until SIGINT or SIGTERM; the exit status. What the containers print goes to the terminal. Raises CannotRun."""
    with _only_one(settings.data_dir), _bound(settings) as sock:
        return asyncio.run(_up(settings, sock, terminal))


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("w")
    except OSError as error:
        raise CannotRun(f"can't keep anything in {data_dir}: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CannotRun(f"{data_dir} is in use by another `python -m endpoint`") from error
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


async def _up(settings: Settings, sock: socket.socket, terminal: Terminal) -> int:
    over = asyncio.Event()
    _on_signals(over.set)  # before there is anything to end: a signal in the beginning ends it when it has begun
    settings.save()
    backend = Backend(settings)
    await _start(backend)
    (settings.data_dir / "answers").mkdir(exist_ok=True)
    database = Database(settings.data_dir / "endpoint.sqlite", *SCHEMAS)
    platform = Platform(settings, backend, database, terminal)
    try:
        return await platform.run(sock, over)
    finally:
        database.close()


async def _start(backend: Backend) -> None:
    try:
        await backend.start()
    except BackendError as error:
        raise CannotRun(str(error)) from error


class Platform:
    """Owns the parts. They outlive nothing: what must is in the database, in files, or a process of its own."""

    def __init__(self, settings: Settings, backend: Backend, database: Database, terminal: Terminal) -> None:
        self._backend = backend
        self._catalog = Catalog(database)
        self._queue = Queue(database)
        self._fleet = Fleet(settings, database, self._catalog, backend, echo=terminal.put)
        self._metrics = Metrics(settings, backend, self._catalog, self._queue, self._fleet)
        self._notices = Notices(settings, database, self._catalog, backend, self._metrics)
        self._data_log = DataLog(settings, backend)
        invoker = Invoker(settings)
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
        control = Control(settings, self._catalog, self._fleet, self._changed)
        runtime = Runtime(settings, self._catalog, self._queue, self._fleet, self._dispatcher, invoker)
        routes = {
            "sagemaker": _handler(Service("sagemaker"), control.call),
            "sagemaker-runtime": _handler(Service("sagemaker-runtime"), runtime.call),
        }
        self._server = make_server(make_app(settings, backend, routes))
        self._url = settings.url

    async def run(self, sock: socket.socket, over: asyncio.Event) -> int:
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
        _on_signals(_leave)
        self._server.should_exit = True
        await asyncio.wait([gateway])
        await _cancel([task for task in others if task.get_name() == "dispatcher"])
        await self._fleet.stop_all()
        await self._metrics.flush()
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


def _leave() -> None:
    os._exit(130)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def down(data_dir: Path) -> int:
    """Ends the instances and the backend that a killed gateway left. The exit status. Raises CannotRun."""
    try:
        settings = Settings.load(data_dir)
    except OSError as error:
        raise CannotRun(f"no endpoint was up in {data_dir}") from error
    except (ValueError, TypeError) as error:
        raise CannotRun(f"{data_dir} has settings that this version can't read ({error}): start `up` first") from error
    with _only_one(data_dir):
        backend = Backend(settings)
        await _start(backend)
        database = Database(data_dir / "endpoint.sqlite", *SCHEMAS)
        await Fleet(settings, database, Catalog(database), backend).stop_all()
        await backend.stop()
        database.close()
        return 0
