"""The networks of one data directory in an engine: one with a way out, and one without for isolated containers.

Both are bridges of this machine. In the first, containers reach the gateway at the bridge's own address. The second is
"internal" in the engine's words: it has no route out, and no ports are published from it, but this machine, on whose
bridge it is, reaches its containers at their own addresses.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network
from typing import Any

from endpoint.fleet.runners.engine import Engine, EngineError
from endpoint.fleet.runners.runner import Bridge, RunnerUnavailable

_LOG = logging.getLogger(__name__)

_IP_FREEBIND = 15
"""Linux's socket option for listening at an address before this machine has it. The socket module lacks the name."""
_BACKLOG = 512


@dataclass(frozen=True, slots=True)
class Network:
    name: str
    address: str
    """This machine's address on the bridge."""
    subnet: IPv4Network


class EngineNetworks:
    """Makes each network when it is first needed, and again if somebody removed it."""

    def __init__(self, engine: Engine, directory_id: str, label: str) -> None:
        """`label` is the KEY=VALUE that networks of this data directory have."""
        self._engine = engine
        self._name = f"longhaul-{directory_id}"
        self._label = label
        self._lock = asyncio.Lock()
        self._known: dict[bool, Network] = {}
        """Networks as they were last seen, by whether they are the isolated one."""

    async def ensure(self, is_isolated: bool) -> Network:
        """Return the network, made if it isn't there. Raises RunnerUnavailable."""
        async with self._lock:
            return await self._ensure(is_isolated)

    async def _ensure(self, is_isolated: bool) -> Network:
        name = f"{self._name}-isolated" if is_isolated else self._name
        found = await self._engine.inspect("network", name)
        if found is None:
            known = self._known.get(is_isolated)
            options = ["--internal"] if is_isolated else []
            if known is not None:  # the gateway listens at the address that it had
                options += [f"--subnet={known.subnet}", f"--gateway={known.address}"]
            await self._engine.run("network", "create", "--driver=bridge", f"--label={self._label}", *options, name)
            found = await self._engine.inspect("network", name)
        network = read_network(name, found or {})
        self._known[is_isolated] = network
        return network

    async def remove_all(self) -> None:
        """Remove the networks of this data directory. One that is in use stays, with a warning."""
        for name in await self._engine.lines("network", "ls", f"--filter=label={self._label}", "--format={{.Name}}"):
            try:
                await self._engine.run("network", "rm", name)
            except EngineError as error:
                if not error.is_absence:
                    _LOG.warning("The network %s stays: %s", name, error)


def read_network(name: str, found: dict[str, Any]) -> Network:
    """Read the one IPv4 subnet of a network, in Docker's form or podman's. Raises RunnerUnavailable."""
    configs = [*((found.get("IPAM") or {}).get("Config") or []), *(found.get("subnets") or [])]
    for config in ({key.lower(): value for key, value in config.items()} for config in configs):
        subnet = ip_network(config["subnet"])
        if isinstance(subnet, IPv4Network):
            return Network(name, config.get("gateway") or str(next(subnet.hosts())), subnet)
    raise RunnerUnavailable(f"the engine's network {name} has no IPv4 subnet")


def listen_on_bridge(network: Network, port: int, *, may_come_later: bool) -> Bridge:
    """Listen on this machine's address in the network, and nowhere else. Raises RunnerUnavailable.

    With `may_come_later`, the address need not be there yet: podman makes a bridge with its first container.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if may_come_later:
            sock.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
        sock.bind((network.address, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        reason = f"{error.strerror}; choose another --port"
        if error.errno == errno.EADDRNOTAVAIL:
            reason = (
                "it is not an address of this machine. The engine must run on this machine and as root: "
                "a rootless one, one in a virtual machine (Docker Desktop) and one elsewhere are not supported"
            )
        raise RunnerUnavailable(
            f"cannot listen on {network.address}:{port}, where containers reach AWS's API: {reason}"
        ) from error
    return Bridge(sock=sock, address=network.address, subnet=network.subnet)
