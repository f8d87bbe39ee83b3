"""Instances as containers of a real engine: a small image for their lives, and the real one for a request."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pytest

from endpoint.fleet.instance import Instance
from endpoint.fleet.runners.engine import Engine
from endpoint.fleet.runners.engine_container import FOLLOWER_MARKER, EngineContainer
from endpoint.fleet.runners.engine_network import read_network
from endpoint.process import find_session
from testing import ROOT
from testing.docker_container import DOCKER, docker
from testing.endpoint.endpoint_up import BUCKET, EndpointUp
from testing.endpoint.fleets import World, a_world, quick
from testing.server import TIMEOUT_S, eventually, free_port

LABEL = "longhaul.data-dir"
RUNNER = "podman" if Path(DOCKER).name == "podman" else "docker"


@pytest.fixture(scope="module")
def small(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Build an image whose `serve` does as it is asked. Returns its name."""
    directory = tmp_path_factory.mktemp("small")
    serve = directory / "serve"
    serve.write_text("#!/usr/bin/env python3\n" + (ROOT / "testing/endpoint/engine_serve.py").read_text())
    serve.chmod(0o755)
    (directory / "Dockerfile").write_text(f"FROM {image}\nCOPY serve /usr/local/sbin/\n")  # before all others in PATH
    docker("build", "--tag", "longhaul:small", str(directory))
    yield "longhaul:small"
    docker("rmi", "longhaul:nowhere", "longhaul:small", check=False)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves containers, networks or followers of logs."""
    yield
    left = left_over()
    if left:
        docker("rm", "--force", *docker("ps", "-aq", f"--filter=label={LABEL}").split(), check=False)
        docker("network", "prune", "--force")
    assert left == []


def left_over() -> list[str]:
    containers = docker("ps", "--all", f"--filter=label={LABEL}", "--format={{.Names}}").split()
    return containers + docker("network", "ls", f"--filter=label={LABEL}", "--format={{.Name}}").split()


def run(tmp_path: Path, image: str, work: Callable[[World], Awaitable[Any]], **settings: Any) -> Any:
    async def inside() -> Any:
        given = {"runner": RUNNER, "serve": (), "port": free_port(), "ping_every_s": 0.2, "time_scale": 1.0}
        async with a_world(quick(tmp_path / "data", **given | settings)) as world:
            return await work(world)

    return asyncio.run(inside())


async def create(world: World, image: str, environment: dict[str, str] | None = None, **model: Any) -> Instance:
    await world.create(
        "e",
        environment=environment,
        container={"Image": image, "Environment": environment or {}},
        variant={"InstanceType": "ml.t2.medium"},
        **model,
    )
    endpoint = await world.until("e", lambda endpoint: endpoint.status != "Creating")
    assert endpoint.status == "InService", endpoint.failure_reason
    return world.fleet.healthy("e")[0]


async def ask(instance: Instance, path: str) -> Any:
    def get() -> Any:
        with urllib.request.urlopen(f"{instance.url}{path}", timeout=20) as answer:
            return json.load(answer)

    return await asyncio.to_thread(get)


async def described(world: World, instance: Instance) -> dict[str, Any]:
    """Return what the engine has of an instance's container."""
    identity = (await world.row(instance))["identity"]
    return dict(json.loads(await asyncio.to_thread(docker, "inspect", identity))[0])


def test_container_is_run_as_sagemaker_does(tmp_path: Path, small: str) -> None:
    async def work(world: World) -> None:
        instance = await create(world, small, {"PATH_TO": "/opt/ml/model/x", "TEXT": "two\nlines", "LANG": "C.UTF-8"})
        facts, given = await ask(instance, "/facts"), await ask(instance, "/environment")
        assert facts["pid"] == 1 and not facts["has_terminal"]
        assert facts["shm_bytes"] == 64 * 2**20
        assert facts["model"] == {} and not facts["is_model_writable"]
        assert given["SM_MODEL_DIR"] == "/opt/ml/model" and given["SAGEMAKER_BIND_TO_PORT"] == "8080"
        assert (given["PATH_TO"], given["TEXT"], given["LANG"]) == ("/opt/ml/model/x", "two\nlines", "C.UTF-8")
        assert not {"AWS_CONFIG_FILE", "LONGHAUL_MODEL", "ENDPOINT_ENGINE_CALL"} & set(given)
        found = await described(world, instance)
        assert found["Config"]["Cmd"] == ["serve"]
        assert found["HostConfig"]["PortBindings"]["8080/tcp"][0]["HostIp"] == "127.0.0.1"
        assert (found["HostConfig"]["Memory"], found["HostConfig"]["MemorySwap"]) == (4 * 2**30, 4 * 2**30)
        assert found["HostConfig"]["NanoCpus"] == min(2, os.cpu_count() or 1) * 10**9
        assert found["Config"]["Labels"]["longhaul.instance"] == instance.id

    run(tmp_path, small, work, limits=True)


@pytest.mark.parametrize(
    ("environment", "is_killed"), [({}, False), ({"IGNORE_SIGTERM": "1"}, True)], ids=["well", "deaf"]
)
def test_sigterm_comes_before_sigkill(tmp_path: Path, small: str, environment: dict[str, str], is_killed: bool) -> None:
    grace_s = 3.0

    async def work(world: World) -> float:
        await create(world, small, environment)
        started = time.monotonic()
        await world.change("e", status="Deleting")
        await world.until_gone("e")
        seconds = time.monotonic() - started
        await world.fleet.send_last_logs()
        assert any("bye" in line for line in world.said) is not is_killed
        return seconds

    seconds = run(tmp_path, small, work, stop_grace_s=grace_s)
    assert grace_s <= seconds < grace_s + 3 if is_killed else seconds < grace_s


def test_dead_container_is_replaced_and_removed(tmp_path: Path, small: str) -> None:
    async def work(world: World) -> None:
        dead = await create(world, small)
        await asyncio.gather(ask(dead, "/die?7"), return_exceptions=True)
        (instance,) = await world.until_healthy("e", lambda found: len(found) == 1 and dead not in found)
        assert instance.id in "".join(left_over()) and dead.id not in "".join(left_over())

    run(tmp_path, small, work)


def test_isolated_container_is_called_at_its_address(tmp_path: Path, small: str) -> None:
    async def work(world: World) -> None:
        instance = await create(world, small, EnableNetworkIsolation=True)
        given = await ask(instance, "/environment")
        assert not {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"} & set(given)
        assert not instance.url.startswith("http://127.")
        assert not (await described(world, instance))["NetworkSettings"]["Ports"].get("8080/tcp")
        for url in ("http://198.51.100.1/", "http://example.com/"):
            assert (await ask(instance, f"/fetch?{url}"))["status"] == 0

    run(tmp_path, small, work)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("123456789012.dkr.ecr.us-east-1.amazonaws.com/none:1", "amazonaws.com/none:1' does not exist."),
        ("longhaul:nowhere", "CannotStartContainerError. Please ensure the model container for variant AllTraffic"),
    ],
)
def test_image_that_cannot_start_fails_endpoint(tmp_path: Path, small: str, name: str, reason: str) -> None:
    docker("build", "--tag", "longhaul:nowhere", "-", input=f'FROM {small}\nENTRYPOINT ["/nowhere"]\n')

    async def work(world: World) -> str | None:
        await world.create("e", container={"Image": name}, variant={"InstanceType": "ml.m5.large"})
        return (await world.until_status("e", "Failed")).failure_reason

    assert reason in str(run(tmp_path, small, work))


def test_killed_follower_of_output_is_replaced(tmp_path: Path, small: str) -> None:
    async def work(world: World) -> None:
        instance = await create(world, small)
        await ask(instance, "/say?200")
        await asyncio.to_thread(eventually, lambda: any("line 50" in line for line in world.said))
        follower = find_session(FOLLOWER_MARKER, instance.id)
        assert follower is not None
        await follower.kill()
        await asyncio.to_thread(eventually, lambda: any("line 199" in line for line in world.said))
        said = {line.partition("] ")[2] for line in world.said}
        assert {f"line {number}" for number in range(200)} <= said
        assert world.fleet.healthy("e") == [instance]

    run(tmp_path, small, work)


def test_want_of_memory_is_told_in_log(tmp_path: Path, small: str) -> None:
    program = "data = [bytes(1 << 20) + b'x' for _ in range(500)]"
    identity = docker(
        *("create", "--memory=32m", "--memory-swap=32m", "--network=none", "--entrypoint=python3"),
        *(small, "-c", program),
    ).strip()
    log = tmp_path / "log"
    docker("start", identity)

    async def work() -> str:
        container = EngineContainer(Engine(RUNNER), identity, "i-1", log, "")
        container.follow()
        await container.wait()
        await container.kill()
        return container.end_reason

    assert asyncio.run(work()).startswith("exit code 137: the kernel killed it, or a process of it, for want of memory")
    assert "(its limit is 32 MiB)" in log.read_text()


# The command line


@pytest.fixture
def up(tmp_path: Path) -> Iterator[EndpointUp]:
    up = EndpointUp(tmp_path, "--runner", RUNNER)
    try:
        yield up
    finally:
        up.close()


def lines(up: EndpointUp) -> list[str]:
    """Return what the instances have printed, as CloudWatch Logs has it."""
    logs, group = up.client("logs"), "/aws/sagemaker/Endpoints/e"
    return [
        event["message"]
        for stream in logs.describe_log_streams(logGroupName=group)["logStreams"]
        for page in logs.get_paginator("filter_log_events").paginate(
            logGroupName=group, logStreamNames=[stream["logStreamName"]]
        )
        for event in page["events"]
    ]


def fetch(up: EndpointUp, endpoint: str, url: str) -> dict[str, Any]:
    """Return what a container of the endpoint is answered at `url`."""
    sent = up.submit(endpoint, body=f"/fetch?{url}".encode()).ended()
    return dict(json.loads(sent.outputs()[0]["body"]))


def test_gateway_answers_its_own_containers_only(up: EndpointUp, small: str) -> None:
    up.make_places()
    up.client("s3").put_object(Bucket=BUCKET, Key="key", Body=b"an object")
    up.make_endpoint("e", container={"Image": small})
    own = fetch(up, "e", f"$AWS_ENDPOINT_URL/{BUCKET}/key")
    assert own == {"status": 200, "text": "an object"}
    [network] = docker("network", "ls", f"--filter=label={LABEL}", "--format={{.Name}}").split()
    address = read_network(network, json.loads(docker("network", "inspect", network))[0]).address
    listening = {
        connection.laddr
        for connection in psutil.Process(up.process.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", up.port), (address, up.port)}

    docker("network", "create", "longhaul-foreign")
    try:
        program = f"import urllib.request as r; r.urlopen('http://{address}:{up.port}/{BUCKET}/key')"
        foreign = subprocess.run(
            [DOCKER, "run", "--rm", "--network=longhaul-foreign", "--entrypoint=python3", small, "-c", program],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert foreign.returncode == 1 and "HTTP Error 403" in foreign.stderr
    finally:
        docker("network", "rm", "longhaul-foreign")


def test_killed_gateway_adopts_container_and_loses_no_line(up: EndpointUp, small: str) -> None:
    up.make_places()
    up.make_endpoint("e", container={"Image": small})
    before = docker("ps", "-q", f"--filter=label={LABEL}")
    up.submit("e", body=b"/say?1000").ended()
    eventually(lambda: any(line.startswith("line ") for line in lines(up)))
    up.kill()
    [log] = (up.directory / "data" / "instances").glob("*/log")
    eventually(lambda: b"line 800" in log.read_bytes())  # written while there is no gateway
    up.start()
    up.wait_until_in_service("e")
    eventually(lambda: "line 999" in lines(up))
    assert {line for line in lines(up) if line.startswith("line ")} == {f"line {number}" for number in range(1000)}
    assert docker("ps", "-q", f"--filter=label={LABEL}") == before
    up.kill()
    assert left_over() != []
    down = up.down()
    assert down.returncode == 0, down.stderr
    assert left_over() == []


def test_real_image_answers_with_emulated_s3(up: EndpointUp, image: str, model: Path) -> None:
    up.make_places()
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(model, arcname=".")
    up.client("s3").put_object(Bucket=BUCKET, Key="model.tar.gz", Body=archive.getvalue())
    # An ECR name for an image that the engine has under its plain name only.
    name = f"123456789012.dkr.ecr.us-east-1.amazonaws.com/{image}"
    up.make_endpoint("e", container={"Image": name, "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"})
    body = json.dumps({"inputs": "The sea is", "parameters": {"max_new_tokens": 8}}).encode()
    sent = up.submit("e", body=body, ContentType="application/json").ended()
    assert b"generated_text" in sent.outputs()[0]["body"]
    assert up.end() == 0
    assert left_over() == []
