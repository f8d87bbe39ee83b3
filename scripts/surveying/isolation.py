"""Trials in processes of their own, a few at a time: a crash or a hang ends one trial alone."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

import msgspec
import torch

from surveying.trial import Result, Size, try_model

MAX_CPU_S = 150
"""Processor seconds of one trial."""
MAX_WAIT_S = 900.0
"""Seconds of one trial: it may wait for other processes of the machine."""

_FORK = multiprocessing.get_context("fork")


def try_models(model_types: Sequence[str], size: Size, *, jobs: int) -> Iterator[Result]:
    """Yield the results as they come."""
    waiting = list(reversed(model_types))
    running: dict[Connection, tuple[str, multiprocessing.process.BaseProcess, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                _start(waiting.pop(), size, running)
            for connection in wait(list(running), timeout=1.0):
                assert isinstance(connection, Connection)
                yield _finish(connection, *running.pop(connection)[:2])
            for _, process, started in running.values():
                if time.monotonic() - started > MAX_WAIT_S:
                    process.kill()
    finally:
        for _, process, _ in running.values():
            process.kill()


def _start(
    model_type: str, size: Size, running: dict[Connection, tuple[str, multiprocessing.process.BaseProcess, float]]
) -> None:
    ours, theirs = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_run, args=(theirs, lambda: try_model(model_type, size)))
    process.start()
    theirs.close()
    running[ours] = (model_type, process, time.monotonic())


def _run(connection: Connection, trial: Callable[[], Result]) -> None:
    """Send the result of the trial, on one thread and without output."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    torch.set_num_threads(1)
    connection.send_bytes(msgspec.json.encode(trial()))


def _finish(connection: Connection, model_type: str, process: multiprocessing.process.BaseProcess) -> Result:
    try:
        result = msgspec.json.decode(connection.recv_bytes(), type=Result)
    except EOFError:
        result = Result(model_type=model_type, failure="the process ended in the middle: a crash, or the time limit")
    connection.close()
    process.join()
    return result
