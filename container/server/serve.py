"""The server on its socket: uvicorn, the signals, and what else the process needs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import uvicorn

from container.processes.heap import share_arenas, start_trimmer
from container.processes.reaper import reap_zombies
from container.server.app import create_app
from container.server.connection import Connection
from container.server.server import Server
from container.settings import Settings
from container.startup.gpu_driver import Decision

logger = logging.getLogger(__name__)

KEEP_ALIVE_TIMEOUT_S = 180
"""Seconds that an idle connection stays open. Pooled clients keep it for less: they would lose a race with a shorter
one."""


class _HTTPServer(uvicorn.Server):
    """uvicorn without its signal handlers: it goes on answering `/ping` while the server drains."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings, model: str, sock: socket.socket, driver: Decision) -> int:
    """Serve until a signal or a failure; return the exit status."""
    server = Server(settings, model, driver)
    share_arenas()
    start_trimmer()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.drain)
    config = uvicorn.Config(
        create_app(server.state, server.exchanges),
        http=cast(Any, partial(Connection, server.state)),  # uvicorn only calls it
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_TIMEOUT_S,
        timeout_graceful_shutdown=1,
    )
    http_server = _HTTPServer(config)
    serving = asyncio.create_task(http_server.serve(sockets=[sock]), name="the HTTP server")
    loading = asyncio.create_task(server.load(), name="loading the model")
    tasks = [serving, loading]
    if os.getpid() == 1:
        tasks.append(asyncio.create_task(reap_zombies(lambda: server.child_pids), name="reaper"))
    for task in tasks:
        task.add_done_callback(server.fail_with)
    status = await server.wait_for_end()
    loading.cancel()
    await server.stop()
    http_server.should_exit = True
    await asyncio.wait([serving])
    logger.info("exit", extra={"action": "exit", "status": status})
    return status
