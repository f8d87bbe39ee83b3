"""Everything of one data directory, put together and run: what `python -m endpoint up` starts."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from .aws_model import Answer, AwsError, Service
from .backend import Backend
from .catalog import Catalog
from .control import Control
from .database import Database
from .dispatcher import Dispatcher
from .fleet import Fleet
from .gateway import Request, make_app
from .metrics import Metrics
from .notices import Notices
from .queue import Queue
from .runtime import Runtime
from .settings import Settings
from .storage import Storage

logger = logging.getLogger(__name__)


class CannotRun(Exception):
    """The message says why, and what to do."""


def up(settings: Settings) -> int:
    """Until SIGINT or SIGTERM; the exit status. Raises CannotRun."""
    with _only_one(settings.data_dir), _bound(settings) as sock:
        return asyncio.run(_up(settings, sock))


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
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((settings.host, settings.port))
        except OSError as error:
            raise CannotRun(f"can't listen on {settings.url}: {error.strerror}; --port takes another") from error
        sock.listen(2048)
        yield sock
