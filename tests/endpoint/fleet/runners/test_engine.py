"""The engine's client, its networks and its containers, as far as no engine is needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from endpoint.fleet.instance import Record
from endpoint.fleet.runners.engine import Engine, EngineError
from endpoint.fleet.runners.engine_container import describe_end
from endpoint.fleet.runners.engine_network import Network, listen_on_bridge, read_network
from endpoint.fleet.runners.engine_runner import EngineRunner, url_of
from endpoint.fleet.runners.runner import RunnerUnavailable
from endpoint.settings import Settings
from testing.server import free_port

LOOPBACK = IPv4Network("127.0.0.0/8")


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Engine]:
    """Return a function that makes an engine whose client is a shell script."""

    def client(script: str) -> Engine:
        path = tmp_path / "client"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("DOCKER", str(path))
        return Engine("docker")

    return client


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo 'warning: old' >&2; echo 'Error: No such object: x' >&2; echo 'See --help.' >&2; exit 1",
            "No such object",
        ),
        ("echo 'Cannot connect to the Docker daemon' >&2; exit 1", "Cannot connect to the Docker daemon"),
        ("exit 3", "exit code 3"),
        ("sleep 600", "version did not answer in 0.2 s"),
    ],
)
def test_clients_reason_is_the_error(client: Callable[[str], Engine], script: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        asyncio.run(client(script).run("version", timeout_s=0.2 if "sleep" in script else 30))


def test_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODMAN", "/no/such/podman")
    with pytest.raises(EngineError, match="/no/such/podman"):
        asyncio.run(Engine("podman").run("version"))


def test_absence_is_told_from_failure(client: Callable[[str], Engine]) -> None:
    absent = client("echo 'Error response from daemon: network x not found' >&2; exit 1")
    assert asyncio.run(absent.inspect("network", "x")) is None
    failing = client("echo 'Error: permission denied' >&2; exit 1")
    with pytest.raises(EngineError, match="permission denied"):
        asyncio.run(failing.inspect("network", "x"))


def test_variables_reach_client_in_its_environment(client: Callable[[str], Engine]) -> None:
    engine = client('printf "%s" "$SECRET"')
    assert asyncio.run(engine.run("create", environment={"SECRET": "two\nlines"})) == "two\nlines"


# Networks


@pytest.mark.parametrize(
    "found",
    [
        {"IPAM": {"Config": [{"Subnet": "fd00::/64"}, {"Subnet": "172.20.0.0/16", "Gateway": "172.20.0.1"}]}},
        {"IPAM": {"Config": [{"Subnet": "172.20.0.0/16"}]}},
        {"subnets": [{"subnet": "172.20.0.0/16", "gateway": "172.20.0.1"}]},
    ],
    ids=["docker", "docker without gateway", "podman"],
)
def test_network_has_bridges_address(found: dict[str, Any]) -> None:
    assert read_network("n", found) == Network("n", "172.20.0.1", IPv4Network("172.20.0.0/16"))


def test_network_without_ipv4_is_refused() -> None:
    with pytest.raises(RunnerUnavailable, match="no IPv4 subnet"):
        read_network("n", {"IPAM": {"Config": None}})


def test_bridge_listens_at_one_address() -> None:
    bridge = listen_on_bridge(Network("n", "127.0.0.2", LOOPBACK), free_port(), may_come_later=False)
    with bridge.sock:
        assert bridge.sock.getsockname()[0] == bridge.address == "127.0.0.2" and bridge.subnet == LOOPBACK


def test_engine_of_another_machine_is_refused() -> None:
    elsewhere = Network("n", "192.0.2.77", IPv4Network("192.0.2.0/24"))
    with pytest.raises(RunnerUnavailable, match=r"192\.0\.2\.77:.*must run on this machine"):
        listen_on_bridge(elsewhere, free_port(), may_come_later=False)
    listen_on_bridge(elsewhere, free_port(), may_come_later=True).sock.close()


def test_taken_port_of_bridge_is_named() -> None:
    port, network = free_port(), Network("n", "127.0.0.2", LOOPBACK)
    with (
        listen_on_bridge(network, port, may_come_later=False).sock,
        pytest.raises(RunnerUnavailable, match=f"127.0.0.2:{port}.*choose another --port"),
    ):
        listen_on_bridge(network, port, may_come_later=False)


# Containers


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"Ports": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "41234"}]}}, "http://127.0.0.1:41234"),
        ({"Ports": {"8080/tcp": None}, "Networks": {"n": {"IPAddress": "172.20.0.2"}}}, "http://172.20.0.2:8080"),
    ],
    ids=["published", "isolated"],
)
def test_container_is_reached_where_it_is(settings: dict[str, Any], url: str) -> None:
    assert url_of({"NetworkSettings": settings}) == url


@pytest.mark.parametrize(
    ("state", "limit", "reason"),
    [
        ({"ExitCode": 3, "OOMKilled": False}, 0, "exit code 3"),
        ({"ExitCode": 137, "OOMKilled": True}, 0, "exit code 137: the kernel killed it"),
        ({"ExitCode": 137, "OOMKilled": True}, 4 * 2**30, r"for want of memory \(its limit is 4,096 MiB\)"),
    ],
    ids=["exit", "memory", "memory with a limit"],
)
def test_end_of_container_is_described(state: dict[str, Any], limit: int, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(describe_end({"State": state, "HostConfig": {"Memory": limit}}))


@pytest.mark.parametrize(("digest", "runner"), [("0f0f", "process"), ("docker:0f0f", "docker"), (None, "process")])
def test_record_knows_its_runner(digest: str | None, runner: str) -> None:
    record = Record(
        id="i-1", endpoint="e", variant="v", config_name="c", state="healthy", slot=0, settings_digest=digest
    )
    assert record.runner == runner


def test_container_of_copied_image_stays(client: Callable[[str], Engine], tmp_path: Path) -> None:
    # `docker commit` gives an image the labels of the container that it is made of.
    described = {"Id": "$3", "Name": "/$3", "Config": {"Labels": {"longhaul.instance": "i-1"}}}
    text = json.dumps([described]).replace('"', '\\"')
    orders = tmp_path / "orders"
    client(
        f"""case "$1" in
        ps) echo longhaul-i-1; echo the-users-own;;
        container) echo "{text}";;
        *) echo "$@" >> {orders};;
        esac"""
    )
    runner = EngineRunner(Settings(data_dir=tmp_path), "docker")
    asyncio.run(runner.remove_others([]))
    assert orders.read_text().splitlines() == ["stop -t 30 longhaul-i-1", "rm --force --volumes longhaul-i-1"]
