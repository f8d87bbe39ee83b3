"""A process in a session of its own that outlives who started it, and that no reused pid can be taken for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

_POLL_S = 0.2
_KILL_S = 10.0
_LISTING = threading.Lock()
"""psutil's cache of processes is not for several threads at once."""


class Process:
    """Started here, or found again by its pid and identity. Nothing else is ever signalled.

    The session's other members (children of any depth that didn't leave it) share its fate, as in a container.
    """

    def __init__(self, pid: int, identity: str, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.identity = identity
        self._child = child

    @classmethod
    def start(cls, command: Sequence[str], environment: Mapping[str, str], output: Path) -> Process:
        """In this process's working directory; stdout and stderr are appended to `output`. Raises OSError."""
        with output.open("ab") as log:
            child = subprocess.Popen(
                list(command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return cls(child.pid, identity_of(child.pid, of_dead=True) or "", child)

    @property
    def alive(self) -> bool:
        if self._child is not None and self._child.poll() is not None:  # poll() buries it
            return False
        return self.identity != "" and identity_of(self.pid) == self.identity

    @property
    def exit_code(self) -> int | None:
        """None while it lives, and of a process that an earlier gateway started: init knows."""
        return None if self._child is None else self._child.poll()

    async def exited(self) -> None:
        """Returns when it is dead."""
        with contextlib.suppress(OSError, AttributeError):  # no pidfd here, or it is dead already
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.alive:  # then the descriptor is its own
                    await _readable(descriptor)
            finally:
                os.close(descriptor)
        while self.alive:
            await asyncio.sleep(_POLL_S)

    async def end(self, grace_s: float) -> None:
        """SIGTERM to the process, SIGKILL to the whole session when it is gone or `grace_s` are over."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.exited(), max(grace_s, 0))
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to it and to what it left in its session; returns when all are dead, or the kernel won't let them."""
        await _kill(self._members)
        if self._child is not None:
            self._child.poll()  # buries it

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _members(self) -> list[psutil.Process]:
        """The living ones of its session. No pid is given out again while it names a session that has members."""
        if not self.alive and identity_of(self.pid, of_dead=True) not in (None, self.identity):
            return []  # the pid is another's: so the session had no members left
        return [process for process in _processes() if _session_of(process.pid) == self.pid and _runs(process)]


def identity_of(pid: int, *, of_dead: bool = False) -> str | None:
    """Tells a process from all that had or will have its pid, also over a reboot. None if there is none or it is dead.

    The start time in ticks since boot: psutil's own is by the wall clock, which moves. `of_dead`: a zombie counts.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _identity_without_proc(pid)
    return None if fields[0] in "ZX" and not of_dead else f"{boot}/{fields[19]}"


def find_session(variable: str, value: str) -> Process | None:
    """The leader of a session whose environment at its start had `variable=value`: one whose pid nobody wrote down.

    None if there is none, or if those that have it descend from several: which of them is it can't be told.
    """
    marked = _marked(variable, value)
    pids = {process.pid for process in marked}
    roots = [process.pid for process in marked if _parent_of(process) not in pids]
    if len(roots) != 1 or _session_of(roots[0]) != roots[0]:
        return None
    identity = identity_of(roots[0])
    return None if identity is None else Process(roots[0], identity)


async def kill_marked(variable: str, value: str) -> None:
    """SIGKILL to all whose environment at their start had `variable=value`, also those that left its session."""
    await _kill(lambda: _marked(variable, value))


async def _kill(find: Callable[[], list[psutil.Process]]) -> None:
    """Until none is found, or the kernel won't let them die."""
    deadline = time.monotonic() + _KILL_S
    while (found := await asyncio.to_thread(find)) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()  # psutil looks first whether the pid is still the same process
        await asyncio.sleep(0.02)


def _processes() -> list[psutil.Process]:
    with _LISTING:
        return list(psutil.process_iter())


def _marked(variable: str, value: str) -> list[psutil.Process]:
    found = []
    for process in _processes():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(variable) == value and _runs(process) and process.pid != os.getpid():
                found.append(process)
    return found


def _parent_of(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _identity_without_proc(pid: int) -> str | None:
    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
