"""The server process alone is killed, its engine at work, idle or starting: no process of the container outlives it."""

from __future__ import annotations

import time

import psutil

from testing.server import Server, eventually

from .batch import Shape
from .call import Call
from .errors import expect
from .testbed import TOKENS, Run, wait_for_engine

RUNS = 9
EXIT_TIMEOUT_S = 2.0


def play(run: Run) -> None:
    moment = ("at work", "idle", "starting")[run.number % 3]
    server = run.start()
    if moment == "at work":
        Call(server.port, run.batch(Shape(longest=2000)))
        eventually(lambda: server.metric(TOKENS) >= run.draw.randrange(1, 1000))
    if moment == "starting":
        _wait_for_another(server)
        time.sleep(run.draw.uniform(0, 3))
    wait_for_engine(server)
    processes = psutil.Process(server.process.pid).children(recursive=True)
    expect(bool(processes), "there is no engine that could be left")
    server.process.kill()
    killed = time.monotonic()
    server.process.wait()
    while (
        left := [process for process in processes if _is_alive(process)]
    ) and time.monotonic() < killed + EXIT_TIMEOUT_S:
        time.sleep(0.01)
    run.facts |= {"engine": moment, "processes": len(processes), "gone after": f"{time.monotonic() - killed:.2f} s"}
    for process in left:
        process.kill()
    expect(not left, f"{len(left)} of {len(processes)} processes live {EXIT_TIMEOUT_S:.0f} s after the server process")


def _is_alive(process: psutil.Process) -> bool:
    """Return whether the process runs. A zombie doesn't: process 1 reaps it in its own time."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_for_another(server: Server) -> None:
    dead = server.kill_engine()
    eventually(lambda: (new := server.engine) is not None and new.pid != dead)
