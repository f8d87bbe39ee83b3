"""What process 1 of a container owes to processes whose parents are gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable


async def bury_orphans(owned_pids: Callable[[], set[int]]) -> None:
    """Now and then, every dead child but those that are owned: their exit status is somebody's to read."""
    while True:
        # uvloop lets nobody else have SIGCHLD.
        await asyncio.sleep(1)
        _bury(owned_pids())


def _bury(owned_pids: set[int]) -> None:
    with contextlib.suppress(ChildProcessError):
        # Look without burying (WNOWAIT). One that is owned comes first in line only while its owner is about to wait.
        while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if dead.si_pid in owned_pids:
                return
            os.waitpid(dead.si_pid, os.WNOHANG)
