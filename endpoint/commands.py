"""The commands `up` and `down`: one process per data directory, with its lock, its port and its signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from endpoint.alarms import store as alarm_store
from endpoint.autoscaling import rows as scaling_rows
from endpoint.backend.backend import Backend, BackendError
from endpoint.fleet import fleet
from endpoint.fleet.fleet import Fleet
from endpoint.fleet.runners.make_runner import make_runner
from endpoint.fleet.runners.runner import RunnerUnavailable
from endpoint.platform import Platform
from endpoint.process import Process, identity_of
from endpoint.settings import Settings
from endpoint.state import catalog, queue
from endpoint.state.catalog import Catalog
from endpoint.state.database import Database
from endpoint.terminal import Terminal

logger = logging.getLogger(__name__)

_LOCK_TIMEOUT_S = 2.0
"""Seconds to wait for the lock: a process that ended keeps it until its last thread has ended."""
_UP_END_TIMEOUT_S = 90.0
"""Seconds that `down` waits for `up`, which needs less even where it has to kill an instance and the backend."""


class CannotRun(Exception):
    """A command can't do its work. The message says why, and what to do."""


Leave = Callable[[int], NoReturn]
"""Function that ends this process at once with a status, even if a thread hangs in a dead backend."""


def up(settings: Settings, terminal: Terminal, leave: Leave) -> None:
    """Serve until SIGINT or SIGTERM. The containers' output goes to the terminal. Raises CannotRun."""
    with lock_data_dir(settings.data_dir) as lock, _listen(settings) as sock:
        lock.write_text(json.dumps({"pid": os.getpid(), "identity": identity_of(os.getpid())}))  # for `down`
        asyncio.run(_serve(settings, sock, terminal, leave))


@contextlib.contextmanager
def lock_data_dir(data_dir: Path) -> Iterator[Path]:
    """Make the directory, and hold its lock, whose file is empty. Raises CannotRun."""
    path = data_dir / "lock"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = FileLock(path, timeout=_LOCK_TIMEOUT_S, fallback_to_soft=False).acquire()
        path.write_text("")
    except Timeout as error:
        raise CannotRun(f"{data_dir} is in use by another `python -m endpoint`") from error
    except OSError as error:
        raise CannotRun(f"cannot write to {data_dir}: {error}") from error
    with held:
        yield path


@contextlib.contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    # The protocol's number makes asyncio set TCP_NODELAY. Head and body of a response are two packets: without it the
    # second waits 40 ms for the client to acknowledge the first.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((settings.host, settings.port))
        except OSError as error:
            raise CannotRun(f"cannot listen on {settings.url}: {error.strerror}; choose another --port") from error
        sock.listen(2048)
        yield sock


async def _serve(settings: Settings, sock: socket.socket, terminal: Terminal, leave: Leave) -> None:
    stop = asyncio.Event()
    _on_signals(stop.set)  # before there is anything to end: an early signal ends it once it has started
    runner = make_runner(settings.runner, settings)
    try:
        bridge = await runner.open()
    except RunnerUnavailable as error:
        raise CannotRun(str(error)) from error
    settings.save()
    (settings.data_dir / "answers").mkdir(exist_ok=True)
    database = _open_database(settings.data_dir)
    backend = Backend(settings)
    try:
        await backend.start()
    except BackendError as error:
        raise CannotRun(str(error)) from error
    platform = Platform(settings, backend, database, terminal, runner, bridge)
    try:
        status = 0 if await platform.run([sock] if bridge is None else [sock, bridge.sock], stop) else 1
        logger.info("ending, instances first; press Ctrl-C again to leave them to `down`")
        _on_signals(lambda: leave(130))
        await platform.close()
    except Exception:
        logger.exception("ended by an internal error; `down` ends what is left")
        status = 1
    database.close()
    leave(status)


def _on_signals(act: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, act)


def _open_database(data_dir: Path) -> Database:
    path = data_dir / "endpoint.sqlite"
    try:
        schemas = (catalog.SCHEMA, queue.SCHEMA, fleet.SCHEMA, alarm_store.SCHEMA, scaling_rows.SCHEMA)
        return Database(path, *schemas)
    except sqlite3.Error as error:
        raise CannotRun(f"cannot use {path} as the database: {error}") from error


async def down(data_dir: Path, leave: Leave) -> None:
    """End a running `up`, or the instances and the backend that a killed one left. Raises CannotRun."""
    await _end_up(data_dir / "lock")
    try:
        settings = Settings.load(data_dir)
    except OSError as error:
        raise CannotRun(f"no endpoint was started in {data_dir}") from error
    except (ValueError, TypeError) as error:
        raise CannotRun(f"{data_dir} has settings of another version ({error}): run `up` first") from error
    with lock_data_dir(data_dir):
        backend = Backend(settings)
        try:
            database = _open_database(data_dir)
        except CannotRun:
            await make_runner(settings.runner, settings).end_unrecorded()
            await backend.stop()
            raise
        left = Fleet(settings, database, Catalog(database), backend)
        try:
            await left.end_all()  # the instances first: they need no backend to end
        except RunnerUnavailable as error:
            await backend.stop()
            raise CannotRun(f"{error}; then run `down` again") from error
        try:
            await backend.start()  # for the last lines of the instances
            await left.send_last_logs()
        except (BackendError, OSError) as error:
            logger.warning("%s: the instances' last lines are sent by the next `up`", error)
        await left.close()
        await backend.stop()
        database.close()
        leave(0)


async def _end_up(lock: Path) -> None:
    try:
        holder = json.loads(lock.read_text())
        process = Process(int(holder["pid"]), holder["identity"])
    except (OSError, ValueError, TypeError, KeyError):
        return
    if not process.is_alive:
        return
    logger.info("ending `up`, pid %d", process.pid)
    try:
        os.kill(process.pid, signal.SIGTERM)
        await asyncio.wait_for(process.wait(), _UP_END_TIMEOUT_S)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise CannotRun(f"`up` (pid {process.pid}) belongs to another user") from error
    except TimeoutError as error:
        raise CannotRun(
            f"`up` (pid {process.pid}) does not end: kill it (kill -9 {process.pid}), then run `down` again"
        ) from error
