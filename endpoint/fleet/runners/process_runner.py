"""Instances as processes of this machine: `./serve`, each the leader of a session of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from endpoint.control_plane.environment_rules import rejection_reason
from endpoint.fleet.runners.environment import MARKER, process_environment
from endpoint.fleet.runners.runner import Bridge, ContainerSpec, StartFailed
from endpoint.process import Process, find_session, kill_marked
from endpoint.settings import Settings
from endpoint.state.catalog import Deployment


class ProcessContainer:
    """A process that stands for a container."""

    def __init__(self, process: Process, instance_id: str, port: int) -> None:
        self._process = process
        self._instance_id = instance_id
        self.url = f"http://127.0.0.1:{port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def identity(self) -> str:
        return self._process.identity

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive

    @property
    def end_reason(self) -> str:
        return f"exit code {self._process.exit_code}"

    async def wait(self) -> None:
        await self._process.wait()

    async def end(self, grace_s: float) -> None:
        await self._process.end(grace_s)
        await kill_marked(MARKER, self._instance_id)

    async def kill(self) -> None:
        await self._process.kill()


class ProcessRunner:
    """Starts the command `--serve`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def settings_digest(self) -> str:
        settings = self._settings
        kept = json.dumps([settings.serve, settings.url, settings.account, settings.region])
        return hashlib.sha256(kept.encode()).hexdigest()

    async def open(self) -> Bridge | None:
        return None

    async def prepare(self, deployment: Deployment) -> None:
        pass

    async def start(self, spec: ContainerSpec) -> ProcessContainer:
        if reason := rejection_reason(spec.variables):  # a model made for another runner may have any variables
            raise StartFailed(reason)
        try:
            process = Process.start(self._settings.serve, process_environment(self._settings, spec), spec.log)
        except (OSError, ValueError) as error:
            raise StartFailed(f"The container could not be started: {error}.") from error
        return ProcessContainer(process, spec.instance_id, spec.port)

    async def find(
        self, instance_id: str, log: Path, port: int, pid: int | None, identity: str | None
    ) -> ProcessContainer | None:
        """Return the living process. If it is dead, or can't be told from others, kill all that is left of it."""
        if pid is None or identity is None:
            process = await asyncio.to_thread(find_session, MARKER, instance_id)
        else:
            process = Process(pid, identity)
        if process is not None:
            if process.is_alive:
                return ProcessContainer(process, instance_id, port)
            await process.kill()
        await kill_marked(MARKER, instance_id)
        return None

    async def remove_others(self, instances: Collection[str]) -> None:
        pass

    async def close(self) -> None:
        pass

    async def end_unrecorded(self) -> None:
        """End the processes of the instances that have a directory in the data directory."""

        async def end(instance_id: str) -> None:
            if (process := await asyncio.to_thread(find_session, MARKER, instance_id)) is not None:
                await process.end(self._settings.stop_grace_s)

        await asyncio.gather(*(end(path.name) for path in (self._settings.data_dir / "instances").glob("*")))
