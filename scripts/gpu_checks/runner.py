"""Runs checks one after the other, each in a process of its own, within the time that is left."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from testing import ROOT

from . import child
from .settings import Settings

Status = Literal["passed", "measured", "failed", "timed out", "not run"]
MIN_S = 3.0
"""Seconds below which a check is not started."""
_POLL_S = 0.05
_TAIL = 2000


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what it looks at, and the most seconds it may take."""

    name: str
    module: str
    limit_s: float
    arguments: tuple[str, ...] = ()


@dataclass(slots=True)
class Result:
    """Outcome of a check."""

    name: str
    status: Status
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    """Cause of anything but success."""


def run_all(
    checks: Sequence[Check], settings: Settings, total_s: float, told: Callable[[list[Result]], None]
) -> list[Result]:
    """Run the checks in turn. `told` gets all results so far after each. Ends `total_s` after its begin at the latest.

    A check gets its own limit, or what is left if that is less.
    """
    ends = time.monotonic() + total_s
    results: list[Result] = []
    for check in checks:
        left_s = ends - time.monotonic()
        if left_s < MIN_S:
            results.append(Result(check.name, "not run", reason="no time was left"))
        else:
            results.append(run(check, settings, min(check.limit_s, left_s)))
        told(results)
    return results


def run(check: Check, settings: Settings, limit_s: float) -> Result:
    """Run one check in a process group of its own, which is killed at the limit with all that it has started."""
    out = Path(settings.folder) / f"{check.name.replace(' ', '-')}.json"
    log = out.with_suffix(".log")
    start = _execute if settings.is_cuda else _fork
    started = time.monotonic()
    pid = start([check.module, str(out), json.dumps(asdict(settings)), *check.arguments], log)
    try:
        status = _wait(pid, limit_s)
    finally:
        _kill_group(pid)
    seconds = time.monotonic() - started
    if status is None and limit_s < check.limit_s:
        return Result(check.name, "not run", seconds, reason=f"no time was left: it was ended after {limit_s:.0f} s")
    if status is None:
        return Result(check.name, "timed out", seconds, reason=f"no end within {limit_s:.0f} s; {_tail(log)}")
    if not out.is_file():
        return Result(check.name, "failed", seconds, reason=f"ended with status {status}; {_tail(log)}")
    return Result(check.name, seconds=seconds, **json.loads(out.read_text()))


def _execute(arguments: list[str], log: Path) -> int:
    """Start a check in a new program: CUDA can't be used behind a fork. Returns its pid."""
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "gpu_checks.child", *arguments],
        os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}", "HF_HUB_OFFLINE": "1"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def _fork(arguments: list[str], log: Path) -> int:
    """Start a check in a fork of this process, which saves it the import of the libraries. Returns its pid."""
    importlib.import_module("gpu_checks.speed")  # with all that the checks import

    pid = os.fork()
    if pid:
        return pid
    status = 1
    with log.open("w") as output:
        try:
            os.setsid()
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            child.run(arguments)
            status = 0
        except BaseException:
            traceback.print_exc(file=output)
        output.flush()
        os._exit(status)


def _wait(pid: int, limit_s: float) -> int | None:
    """Wait for a process and return its exit status; None if it does not end in time."""
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL_S)
    return None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    # A process in a driver's call that never returns is left behind: not even SIGKILL ends it.
    with contextlib.suppress(ChildProcessError):
        _wait(pid, 2.0)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_TAIL:].strip()
