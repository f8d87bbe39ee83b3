"""Zombie processes: what process 1 of a container owes to processes whose parents are gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

_INTERVAL_S = 1.0


async def reap_zombies(owned_pids: Callable[[], set[int]]) -> None:
    """Reap dead children once a second, except those in `owned_pids`, whose exit status their owner waits for."""
    while True:
        # uvloop keeps SIGCHLD to itself, so this can't wait for a signal.
        await asyncio.sleep(_INTERVAL_S)
        owned = owned_pids()
        with contextlib.suppress(ChildProcessError):
            # Look without reaping (WNOWAIT). An owned one comes first in line only while its owner is about to wait.
            while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if dead.si_pid in owned:
                    break
                os.waitpid(dead.si_pid, os.WNOHANG)
