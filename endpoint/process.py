"""A process in a session of its own that outlives its parent and is never confused with another one of its pid.

Needs Linux: a process is identified by what /proc says of it.
"""

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

_POLL_INTERVAL_S = 0.2
_KILL_TIMEOUT_S = 10.0
_listing = threading.Lock()  # psutil's cache of processes is not for several threads at once


class Process:
    """A session's leader, started here or found again by its pid and identity. Nothing else is ever signalled.

    The session's other members (descendants that didn't leave it) share its fate, as in a container.
    """

    def __init__(self, pid: int, identity: str) -> None:
        self.pid = pid
        self.identity = identity
        self.exit_code: int | None = None
        """Exit code once `wait` has returned, negative for a signal; None if another process started it."""

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        output: Path,
        directory: Path | None = None,
        descriptors: Sequence[int] = (),
    ) -> Process:
        """Start `command` in `directory` (default: the current one). Raises OSError.

        Its stdout and stderr are appended to `output`; it inherits `descriptors`.
        """
        with output.open("ab") as log:
            child = subprocess.Popen(
                list(command),
                env=dict(environment),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
                start_new_session=True,
            )
        child.returncode = 0  # it is reaped here; Popen would warn of a child that outlives it
        return cls(child.pid, identity_of(child.pid, include_zombie=True) or "")

    @property
    def is_alive(self) -> bool:
        """Whether its main thread runs."""
        return identity_of(self.pid) == self.identity

    async def wait(self) -> None:
        """Return once it is dead, with all of its threads; reap it if it is a child."""
        with contextlib.suppress(OSError):  # it is gone already, or this kernel has no pidfd
            descriptor = os.pidfd_open(self.pid)
            loop, has_ended = asyncio.get_running_loop(), asyncio.Event()
            try:
                # Compared after it was opened: the descriptor can't be that of a later process with this pid then.
                if identity_of(self.pid, include_zombie=True) == self.identity:
                    loop.add_reader(descriptor, has_ended.set)
                    await has_ended.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
        while self.is_alive:
            await asyncio.sleep(_POLL_INTERVAL_S)
        if identity_of(self.pid, include_zombie=True) == self.identity:
            with contextlib.suppress(ChildProcessError):  # it has another parent
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.exit_code = os.waitstatus_to_exitcode(status) if pid else None

    async def end(self, grace_s: float) -> bool:
        """Send SIGTERM to it, then SIGKILL to its whole session once it is gone or after `grace_s`.

        Returns whether SIGTERM was enough.
        """
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), max(grace_s, 0))
        was_enough = not self.is_alive
        await self.kill()
        return was_enough

    async def kill(self) -> None:
        """Send SIGKILL to it and to what it left in its session; return when all are dead, or can't be killed."""
        self._signal(signal.SIGKILL)  # without a thread's help: all threads may hang in calls to this very process

        def members() -> list[psutil.Process]:
            # A pid isn't reused while a session of that number has members: another process has it, so there are none.
            if identity_of(self.pid, include_zombie=True) not in (None, self.identity):
                return []
            return _find_living(lambda process: os.getsid(process.pid) == self.pid)

        await _kill_all(members)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), _KILL_TIMEOUT_S)

    def _signal(self, number: signal.Signals) -> None:
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def identity_of(pid: int, *, include_zombie: bool = False) -> str | None:
    """Return a text that no other process with this pid ever has, across reboots; None if there is no process.

    It holds the start time in ticks since boot: psutil's is by the wall clock, which moves.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" and not include_zombie else f"{boot}/{fields[19]}"


def find_session(variable: str, value: str) -> Process | None:
    """Find the leader of a session that was started with `variable=value` in its environment.

    Returns None if there is none, or if those that have the variable descend from several processes.
    """
    marked = _find_marked(variable, value)
    pids = {process.pid for process in marked}
    with contextlib.suppress(psutil.Error, OSError):
        roots = [process.pid for process in marked if process.ppid() not in pids]
        if len(roots) == 1 and os.getsid(roots[0]) == roots[0]:
            identity = identity_of(roots[0])
            return None if identity is None else Process(roots[0], identity)
    return None


async def kill_marked(variable: str, value: str) -> None:
    """Send SIGKILL to all that were started with `variable=value` in their environment, in any session."""
    await _kill_all(lambda: _find_marked(variable, value))


async def _kill_all(find: Callable[[], list[psutil.Process]]) -> None:
    """Kill the found processes until none is found, or they can't be killed."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while (found := await asyncio.to_thread(find)) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()  # psutil checks first that the pid is still the same process
        await asyncio.sleep(0.02)


def _find_marked(variable: str, value: str) -> list[psutil.Process]:
    return _find_living(lambda process: process.environ().get(variable) == value)


def _find_living(is_wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Return the wanted processes but for this one, zombies, and those that may not be looked at."""
    with _listing:
        processes = list(psutil.process_iter())
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and is_wanted(process) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
