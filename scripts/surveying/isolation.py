"""Trials of types in processes of their own: a crash or a hang of one doesn't end the survey."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import msgspec
import torch

from surveying.trials import Result, survey

_FORK = multiprocessing.get_context("fork")


class _Running:
    """The process of one type."""

    def __init__(self, model_type: str, limit_s: float) -> None:
        self.model_type = model_type
        self.connection, theirs = _FORK.Pipe(duplex=False)
        self._limit_s = limit_s
        self._started = time.monotonic()
        self._process: BaseProcess = _FORK.Process(target=_survey_quietly, args=(model_type, theirs))
        self._process.start()
        theirs.close()

    @property
    def is_late(self) -> bool:
        return time.monotonic() - self._started > self._limit_s

    def end(self) -> Result:
        """Take the result, and end the process and its children if it is still there."""
        result = Result(failure=f"took more than {self._limit_s:.0f} seconds")
        if self.connection.poll():
            try:
                result = msgspec.msgpack.decode(self.connection.recv_bytes(), type=Result)
            except EOFError:
                result = Result(failure="its process died")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.join()
        self.connection.close()
        result.seconds = round(time.monotonic() - self._started, 1)
        return result


def survey_each(
    model_types: Iterable[str], *, jobs: int, limit_s: float, note: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[str, Result]]:
    """Survey types, `jobs` at a time, and yield each one's result when it is there. `note` is told each that begins."""
    waiting, running = list(model_types), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                note(waiting[0])
                running.append(_Running(waiting.pop(0), limit_s))
            ready = wait([one.connection for one in running], timeout=0.5)
            for one in [one for one in running if one.connection in ready or one.is_late]:
                running.remove(one)
                yield one.model_type, one.end()
    finally:
        for one in running:
            one.end()


def _survey_quietly(model_type: str, connection: Connection) -> None:
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    connection.send_bytes(msgspec.msgpack.encode(survey(model_type)))
