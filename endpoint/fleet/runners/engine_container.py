"""A container of an engine: its end awaited, its output in its instance's log, both without asking again and again.

The client that follows the container's output (`docker logs --follow`) does both. It writes to the log itself and is a
session of its own, so that a gateway's death costs no line. It ends with the container. If it ends earlier (somebody
kills it, or the engine is restarted), another goes on from a second before the log's last change: a line may come twice
then, and none is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from endpoint.fleet.runners.engine import Engine, EngineError
from endpoint.process import Process, find_session

_LOG = logging.getLogger(__name__)

FOLLOWER_MARKER = "ENDPOINT_LOG_FOLLOWER"
"""Variable in a follower's environment, by which the next gateway finds it."""
_RETRY_INTERVAL_S = 1.0
_LAST_LINES_TIMEOUT_S = 10.0
"""Seconds for a follower to write the last lines of a container that has ended."""
_OVERLAP = timedelta(seconds=1)


class EngineContainer:
    """Owns the container, its follower and, while it lives, the end of its log."""

    pid = None

    def __init__(self, engine: Engine, identity: str, instance_id: str, log: Path, url: str) -> None:
        """`identity` is the engine's id of the container."""
        self.identity = identity
        self.url = url
        self.end_reason = "an unknown exit code"
        self._engine = engine
        self._instance_id = instance_id
        self._log = log
        self._follower: Process | None = None
        self._has_ended = False
        """Whether it is dead with its output in its log: another follower would write the last lines again."""

    @property
    def is_alive(self) -> bool:
        return self._follower is not None and self._follower.is_alive

    def follow(self) -> None:
        """Have the output of a container that was just started followed. Raises OSError."""
        self._keep_following()

    async def go_on_following(self) -> None:
        """Have the output followed, by the follower that an earlier gateway started if that lives. Raises OSError."""
        self._follower = await asyncio.to_thread(find_session, FOLLOWER_MARKER, self._instance_id)
        self._keep_following()

    async def wait(self) -> None:
        """Return once it is dead, and its output is in its log."""
        is_told = False
        while not self._has_ended:
            await self._keep_following().wait()
            try:
                self._has_ended = not await self._is_running()
                is_told = False
            except EngineError as error:
                if not is_told:
                    _LOG.warning("The engine does not say what %s does: %s", self._instance_id, error)
                is_told = True
            if not self._has_ended:
                await asyncio.sleep(_RETRY_INTERVAL_S)

    async def end(self, grace_s: float) -> None:
        await self._signal("TERM")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), max(grace_s, 0))
        await self.kill()

    async def kill(self) -> None:
        await self._signal("KILL")
        if self._follower is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._follower.wait(), _LAST_LINES_TIMEOUT_S)
            await self._follower.kill()
        self._has_ended = True
        await self.remove()

    async def remove(self) -> None:
        """Remove it from the engine, dead or alive. Raises EngineError."""
        try:
            await self._engine.run("rm", "--force", "--volumes", self.identity)
        except EngineError as error:
            if not error.is_absence:
                raise

    async def _signal(self, name: str) -> None:
        """Send a signal to its process 1. Raises EngineError if that could not be done, and it may be alive."""
        try:
            await self._engine.run("kill", f"--signal={name}", self.identity)
        except EngineError:
            if await self._is_running():
                raise

    async def _is_running(self) -> bool:
        """Ask the engine, and set `end_reason` if the container has ended. Raises EngineError."""
        found = await self._engine.inspect("container", self.identity)
        if found is None:
            self.end_reason = "its removal by somebody else"
            return False
        if found["State"]["Running"]:
            return True
        reason = describe_end(found)
        if reason != self.end_reason and found["State"].get("OOMKilled"):
            with contextlib.suppress(OSError), self._log.open("ab") as log:
                log.write(f"The container ended with {reason}\n".encode())
        self.end_reason = reason
        return False

    def _keep_following(self) -> Process:
        """Return the living follower; start one if there is none."""
        if self._follower is None or not self._follower.is_alive:
            since = []
            with contextlib.suppress(FileNotFoundError):
                state = self._log.stat()
                if state.st_size:
                    written = datetime.fromtimestamp(state.st_mtime, UTC) - _OVERLAP
                    since = [f"--since={written.isoformat(timespec='microseconds').replace('+00:00', 'Z')}"]
            self._follower = Process.start(
                [self._engine.program, "logs", "--follow", *since, self.identity],
                {**os.environ, FOLLOWER_MARKER: self._instance_id},
                self._log,
            )
        return self._follower


def describe_end(found: dict[str, Any]) -> str:
    """Return what ended a container, from what the engine has of it."""
    state = found["State"]
    reason = f"exit code {state['ExitCode']}"
    if state.get("OOMKilled"):
        limit = (found.get("HostConfig") or {}).get("Memory") or 0
        reason += ": the kernel killed it, or a process of it, for want of memory"
        reason += f" (its limit is {limit / 2**20:,.0f} MiB)" if limit else ""
    return reason
