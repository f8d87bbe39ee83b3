"""The interface between the fleet and what runs its containers. Nothing here knows which of the runners that is."""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Protocol

from endpoint.state.catalog import Deployment


class StartFailed(Exception):
    """Raised if an instance can't start. Its text is the endpoint's FailureReason."""


class RunnerUnavailable(Exception):
    """Raised if containers can't be run, found or ended at all. The message says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """The values that a container is started from."""

    instance_id: str
    slot: int
    """Number that no other instance of this machine's endpoint has at the same time."""
    endpoint: str
    deployment: Deployment
    model_dir: Path
    port: int
    """Port of 127.0.0.1 at which the container is to be reached."""
    journal_uri: str | None
    """Journal's place in S3; None if the endpoint gives the container none."""
    log: Path
    """File to which the container's stdout and stderr are appended."""

    @property
    def variant(self) -> str:
        return str(self.deployment.variant["VariantName"])

    @property
    def is_isolated(self) -> bool:
        """Whether the model's EnableNetworkIsolation is set."""
        return bool(self.deployment.model.get("EnableNetworkIsolation"))

    @property
    def variables(self) -> dict[str, str]:
        """The model's own Environment."""
        return dict(self.deployment.container.get("Environment", {}))


class Container(Protocol):
    """A container that was started here or found again. Nothing else is ever signalled."""

    @property
    def pid(self) -> int | None:
        """Process id on this machine, if the runner finds a container by it."""

    @property
    def identity(self) -> str:
        """Text by which the runner finds the container again after a gateway's end."""

    @property
    def url(self) -> str:
        """URL of the container's HTTP server, without a path."""

    @property
    def is_alive(self) -> bool:
        """Whether it runs, as far as is known without asking anyone."""

    @property
    def end_reason(self) -> str:
        """Reason of its end ("exit code 3"), once `wait` has returned."""

    async def wait(self) -> None:
        """Return once it is dead."""

    async def end(self, grace_s: float) -> None:
        """Send SIGTERM, then SIGKILL to all that is left after `grace_s` seconds. Nothing of it is left then."""

    async def kill(self) -> None:
        """Send SIGKILL to all of it. Nothing of it is left then, and its output is in its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """The place at which containers of an engine reach the gateway."""

    sock: socket.socket
    """Socket that listens at `address`."""
    address: str
    subnet: IPv4Network
    """Addresses of the containers: requests from others are refused there."""


class Runner(Protocol):
    """Starts containers, and finds them again that an earlier gateway started."""

    @property
    def settings_digest(self) -> str:
        """Digest of the settings that a container keeps from its start: under others, it must be replaced."""

    async def open(self) -> Bridge | None:
        """Make ready to start containers. Raises RunnerUnavailable.

        Returns where containers reach the gateway, if it must listen for them at an address of its own.
        """

    async def prepare(self, deployment: Deployment) -> None:
        """Get what comes before a container's start-up window: its image. Raises StartFailed."""

    async def start(self, spec: ContainerSpec) -> Container:
        """Start a container. Raises StartFailed, with nothing of it left. Cancelled, it leaves nothing either."""

    async def find(
        self, instance_id: str, log: Path, port: int, pid: int | None, identity: str | None
    ) -> Container | None:
        """Return an instance's living container. If it is dead, remove all that is left of it.

        Raises RunnerUnavailable.
        """

    async def remove_others(self, instances: Collection[str]) -> None:
        """End the containers of this data directory that belong to none of `instances`."""

    async def close(self) -> None:
        """Remove what containers needed beside themselves, when there are none any more."""

    async def end_unrecorded(self) -> None:
        """End all containers of a data directory whose database can't be read."""
