"""The command line of a container engine, Docker's or podman's: one subprocess per question or order.

The client rather than the engine's HTTP API: it knows contexts, sockets and versions, podman's takes the same arguments
and needs no service, and a follower of a log is an ordinary process that outlives the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping
from typing import Any

from endpoint.fleet.runners.runner import RunnerUnavailable
from endpoint.process import kill_marked

_TIMEOUT_S = 60.0
_CALL_MARKER = "ENDPOINT_ENGINE_CALL"
"""Variable in a client's environment, by which the calls of a killed gateway are found."""
_ABSENT = ("no such", "not found", "not known", "unable to find")
"""Parts of the messages, in lower case, with which engines say that something isn't there."""


class EngineError(RunnerUnavailable):
    """Raised if the engine refuses, fails or doesn't answer. The message is its own."""

    @property
    def is_absence(self) -> bool:
        """Whether the reason is that something isn't there."""
        return any(part in str(self).lower() for part in _ABSENT)


class Engine:
    """Calls a client: that of the engine `name`, "docker" or "podman", or what DOCKER or PODMAN names instead."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.program = os.environ.get(name.upper()) or name

    async def run(
        self,
        *arguments: str,
        instance_id: str = "",
        environment: Mapping[str, str] | None = None,
        timeout_s: float | None = _TIMEOUT_S,
    ) -> str:
        """Run the client and return its stdout. Raises EngineError, after `timeout_s` as well.

        Cancelled, it leaves the client running: an order that was given is carried out.
        """
        try:
            client = await asyncio.create_subprocess_exec(
                self.program,
                *arguments,
                env={**os.environ, **(environment or {}), _CALL_MARKER: instance_id},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal is for the gateway alone
            )
        except OSError as error:
            raise EngineError(f"no client of that name: {error}") from error
        try:
            async with asyncio.timeout(timeout_s):
                output, errors = await client.communicate()
        except TimeoutError as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(client.pid, signal.SIGKILL)
            await client.communicate()
            raise EngineError(f"{self.program} {arguments[0]} did not answer in {timeout_s:g} s") from error
        if client.returncode != 0:
            lines = [line.strip() for line in errors.decode(errors="replace").splitlines() if line.strip()]
            message = lines[-1] if lines else f"exit code {client.returncode}"
            for line in lines:  # what follows the reason is an advice
                if line.lower().startswith("error"):
                    message = line
                    break
            raise EngineError(message)
        return output.decode(errors="replace")

    async def lines(self, *arguments: str) -> list[str]:
        """Return the lines of the client's stdout that aren't empty. Raises EngineError."""
        return [line for line in (await self.run(*arguments)).splitlines() if line]

    async def inspect(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return what the engine has of a container, an image or a network, or None. Raises EngineError."""
        try:
            found = json.loads(await self.run(kind, "inspect", name))
        except EngineError as error:
            if error.is_absence:
                return None
            raise
        return dict(found[0]) if found else None

    async def cut_off(self, instance_id: str) -> None:
        """End the calls for an instance that a killed gateway made."""
        await kill_marked(_CALL_MARKER, instance_id)
