"""Instances as containers of an engine on this machine: `run IMAGE serve`, by Docker's client or podman's."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import os
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any

from endpoint.aws.instance_types import InstanceType, find_instance_type, has_gpus
from endpoint.fleet.runners.container_arguments import (
    Place,
    create_arguments,
    image_candidates,
    passed_variables,
)
from endpoint.fleet.runners.engine import Engine, EngineError
from endpoint.fleet.runners.engine_container import EngineContainer
from endpoint.fleet.runners.engine_network import EngineNetworks, Network, listen_on_bridge
from endpoint.fleet.runners.environment import PORT, container_environment
from endpoint.fleet.runners.runner import Bridge, ContainerSpec, RunnerUnavailable, StartFailed
from endpoint.settings import Settings
from endpoint.state.catalog import Deployment

_LOG = logging.getLogger(__name__)

_DIRECTORY_LABEL, _INSTANCE_LABEL, _ENDPOINT_LABEL = "longhaul.data-dir", "longhaul.instance", "longhaul.endpoint"
_ID_FILE = "id"
_CDI_FILES = ("/etc/cdi/nvidia.yaml", "/var/run/cdi/nvidia.yaml")
"""Files that tell podman how to give containers NVIDIA's GPUs."""


class EngineRunner:
    """Runs containers whose labels have the data directory's id, and touches no others."""

    def __init__(self, settings: Settings, program: str) -> None:
        self._settings = settings
        self._engine = Engine(program)
        self._directory_id = _directory_id(settings.data_dir)
        self._label = f"{_DIRECTORY_LABEL}={self._directory_id}"
        self._networks = EngineNetworks(self._engine, self._directory_id, self._label)
        self._network: Network | None = None
        self._can_give_gpus = False

    @property
    def settings_digest(self) -> str:
        settings = self._settings
        url = None if self._network is None else self._url(self._network)
        kept = json.dumps([url, settings.account, settings.region, settings.limits])
        return f"{self._engine.name}:{hashlib.sha256(kept.encode()).hexdigest()}"

    async def open(self) -> Bridge:
        is_podman = self._engine.name == "podman"
        try:
            await self._engine.run("version")
            info = json.loads(await self._engine.run("info", "--format={{json .}}"))
            if is_podman and info["host"]["security"]["rootless"]:
                raise RunnerUnavailable(
                    "a rootless engine's networks can't be reached from this machine: run `up` as root"
                )
            self._can_give_gpus = (
                any(map(os.path.exists, _CDI_FILES)) if is_podman else "nvidia" in info.get("Runtimes", {})
            )
            self._network = await self._networks.ensure(is_isolated=False)
        except EngineError as error:
            raise RunnerUnavailable(f"--runner {self._engine.name} needs a container engine: {error}") from error
        return listen_on_bridge(self._network, self._settings.port, may_come_later=is_podman)

    async def prepare(self, deployment: Deployment) -> None:
        await self._find_image(deployment)

    async def start(self, spec: ContainerSpec) -> EngineContainer:
        starting = asyncio.ensure_future(self._start(spec))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(StartFailed):
                await (await starting).kill()
            raise

    async def _start(self, spec: ContainerSpec) -> EngineContainer:
        image = await self._find_image(spec.deployment)
        try:
            network = await self._networks.ensure(spec.is_isolated)
            identity = await self._create(spec, image, network)
        except EngineError as error:
            raise _cannot_start(spec, error) from error
        container = EngineContainer(self._engine, identity, spec.instance_id, spec.log, "")
        try:
            await self._engine.run("start", identity, instance_id=spec.instance_id)
            container.follow()
            container.url = url_of(await self._engine.inspect("container", identity) or {})
            return container
        except (EngineError, OSError) as error:
            await container.kill()
            raise _cannot_start(spec, error) from error

    async def _create(self, spec: ContainerSpec, image: str, network: Network) -> str:
        """Create the container. Returns its id. Raises StartFailed, EngineError."""
        assert self._network is not None
        variables = container_environment(self._settings, spec, self._url(self._network))
        type_name = _instance_type(spec.deployment)
        arguments = create_arguments(
            self._engine.name,
            name=_name_of(spec.instance_id),
            image=image,
            place=Place(network=network.name, port=None if spec.is_isolated else spec.port),
            model_dir=spec.model_dir,
            labels={
                _DIRECTORY_LABEL: self._directory_id,
                _INSTANCE_LABEL: spec.instance_id,
                _ENDPOINT_LABEL: spec.endpoint,
            },
            variables=variables,
            limits=_limits(type_name) if self._settings.limits else None,
            cpu_count=os.cpu_count() or 1,
            with_gpus=has_gpus(type_name) and self._can_give_gpus,
        )
        created = await self._engine.run(
            *arguments, instance_id=spec.instance_id, environment=passed_variables(variables)
        )
        return created.split()[-1]

    async def find(
        self, instance_id: str, log: Path, port: int, pid: int | None, identity: str | None
    ) -> EngineContainer | None:
        await self._engine.cut_off(instance_id)
        found = await self._list(f"{_INSTANCE_LABEL}={instance_id}")
        for described in found:
            container = EngineContainer(self._engine, described["Id"], instance_id, log, url_of(described))
            if described["State"]["Status"] == "created":  # a gateway was killed before it started it
                await container.remove()
                continue
            await container.go_on_following()
            if described["State"]["Running"] and len(found) == 1:
                return container
            await container.kill()
        return None

    async def remove_others(self, instances: Collection[str]) -> None:
        others = [
            described["Id"]
            for described in await self._list()
            if _labels(described).get(_INSTANCE_LABEL) not in instances
        ]
        await asyncio.gather(*map(self._stop, others))

    async def close(self) -> None:
        await self._networks.remove_all()

    async def end_unrecorded(self) -> None:
        await self.remove_others([])
        await self.close()

    async def _stop(self, identity: str) -> None:
        """End a container of which nothing but its label is known."""
        grace_s = math.ceil(self._settings.stop_grace_s)
        await self._engine.run("stop", "-t", str(grace_s), identity, timeout_s=grace_s + 60)
        await self._engine.run("rm", "--force", "--volumes", identity)
        _LOG.warning("Removed the container %s, which no instance had", identity[:12])

    async def _list(self, label: str | None = None) -> list[dict[str, Any]]:
        """Return what the engine has of this data directory's containers, dead and alive. Raises EngineError."""
        filters = [f"--filter=label={one}" for one in (self._label, label) if one is not None]
        ids = await self._engine.lines("ps", "--all", "--no-trunc", "--format={{.ID}}", *filters)
        found = [await self._engine.inspect("container", identity) for identity in ids]
        return [described for described in found if described is not None and _is_named_as_labelled(described)]

    def _url(self, network: Network) -> str:
        """Return the URL of AWS's API as containers see it."""
        return f"http://{network.address}:{self._settings.port}"

    async def _find_image(self, deployment: Deployment) -> str:
        """Return the name under which the engine has the model's image. Raises StartFailed."""
        image: str = deployment.container["Image"]
        candidates = image_candidates(image)
        try:
            for name in candidates:
                if await self._engine.inspect("image", name) is not None:
                    return name
        except EngineError as error:
            raise StartFailed(f"The engine can't be asked for the image '{image}': {error}.") from error
        program = self._engine.name
        reason = f"It is none of the images that {program} has here: build it, pull it, or use `up --pull missing`"
        if self._settings.pull == "missing" and candidates:
            try:
                await self._engine.run("pull", image, timeout_s=None)
                return image
            except EngineError as error:
                reason = f"{program} pull: {error}"
        # The first sentence is SageMaker's own.
        raise StartFailed(f"The image '{image}' does not exist. {reason}.")


def _directory_id(data_dir: Path) -> str:
    """Return the data directory's id, which is made when it is first asked for, and moves with the directory."""
    path = data_dir / _ID_FILE
    with contextlib.suppress(FileExistsError):
        new = data_dir / f"{_ID_FILE}.{secrets.token_hex(4)}"
        new.write_text(secrets.token_hex(6))
        try:
            os.link(new, path)  # whole or not at all
        finally:
            new.unlink()
    return path.read_text().strip()


def _labels(described: dict[str, Any]) -> dict[str, str]:
    return (described.get("Config") or {}).get("Labels") or {}


def _is_named_as_labelled(described: dict[str, Any]) -> bool:
    """Tell whether a container has the name that we gave it: an image that was made of one of ours has its labels."""
    return bool(described["Name"].removeprefix("/") == _name_of(_labels(described).get(_INSTANCE_LABEL, "")))


def _name_of(instance_id: str) -> str:
    """Return the name of an instance's container."""
    return f"longhaul-{instance_id}"


def url_of(described: dict[str, Any]) -> str:
    """Return the URL of a container: at its published port, or at its own address where none is published."""
    settings = described.get("NetworkSettings") or {}
    bound = (settings.get("Ports") or {}).get(f"{PORT}/tcp") or []
    if bound:
        return f"http://127.0.0.1:{bound[0]['HostPort']}"
    addresses = [network.get("IPAddress") for network in (settings.get("Networks") or {}).values()]
    return f"http://{next(filter(None, addresses), '')}:{PORT}"


def _instance_type(deployment: Deployment) -> str:
    """Return the variant's instance type: of several pools, that of the first priority."""
    pools = deployment.variant.get("InstancePools") or [deployment.variant]
    return str(min(pools, key=lambda pool: pool.get("Priority", 0))["InstanceType"])


def _limits(type_name: str) -> InstanceType:
    """Return what an instance has. Raises StartFailed."""
    limits = find_instance_type(type_name)
    if limits is None:
        raise StartFailed(f"The processors and the memory of {type_name} are not known, which --limits needs.")
    return limits


def _cannot_start(spec: ContainerSpec, error: Exception) -> StartFailed:
    """Return SageMaker's own words, and what the engine said."""
    return StartFailed(
        f"CannotStartContainerError. Please ensure the model container for variant {spec.variant} starts correctly "
        f"when invoked with 'docker run <image> serve'. {error}"
    )
