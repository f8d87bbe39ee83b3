from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from endpoint.fleet.instance import Instance
from endpoint.fleet.runners.environment import MARKER
from endpoint.process import Process, find_session, identity_of, kill_marked
from endpoint.state.catalog import Endpoint, NotFound
from testing import ROOT
from testing.emulator import Emulator
from testing.endpoint.fleets import MISBEHAVING, World, a_world, quick
from testing.server import TIMEOUT_S, eventually

NO_PING = (
    "The primary container for production variant AllTraffic did not pass the ping health check. "
    "Please check CloudWatch logs for this endpoint."
)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path) -> Iterator[None]:
    """Fail a test whose processes outlive it."""
    yield
    left = [process for process in psutil.process_iter() if of_directory(process, tmp_path)]
    for process in left:
        process.kill()
    assert left == []


def of_directory(process: psutil.Process, directory: Path) -> bool:
    try:
        return str(directory) in process.environ().get("SM_MODEL_DIR", "") and process.status() != "zombie"
    except psutil.Error:
        return False


def run(tmp_path: Path, work: Callable[[World], Awaitable[Any]], *, backend: Any = None, **settings: Any) -> Any:
    async def inside() -> Any:
        async with a_world(quick(tmp_path / "data", **settings), backend) as world:
            return await work(world)

    return asyncio.run(inside())


async def ask(instance: Instance, path: str) -> Any:
    def get() -> Any:
        with urllib.request.urlopen(f"{instance.url}/{path}", timeout=10) as answer:
            return json.load(answer)

    return await asyncio.to_thread(get)


async def until(question: Callable[[], object]) -> None:
    await asyncio.to_thread(eventually, question)


def is_alive(pid: int) -> bool:
    return identity_of(pid) is not None


# Creation


def test_endpoint_is_in_service_once_instances_answer(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", 2)
        assert world.fleet.healthy("e") == []
        endpoint = await world.until_status("e", "InService")
        assert (endpoint.current, endpoint.failure_reason) == (2, None)
        instances = world.fleet.healthy("e")
        assert len({instance.url for instance in instances}) == 2
        assert all(is_alive(pid) for pid in await world.pids(instances))

    run(tmp_path, work)


def test_slow_container_gets_healthy(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", environment={"WAIT_FOR_HEALTHY": "1"})
        await until(lambda: any("here" in line for line in world.said))
        assert (await world.catalog.endpoint("e")).status == "Creating"
        (world.control / "healthy").touch()
        await world.until_status("e", "InService")

    run(tmp_path, work)


@pytest.mark.parametrize("environment", [{"WAIT_FOR_HEALTHY": "1"}, {"HANG_AT_ONCE": "1"}])
def test_instance_that_never_answers_fails_endpoint(tmp_path: Path, environment: dict[str, str]) -> None:
    async def work(world: World) -> Endpoint:
        if "HANG_AT_ONCE" in environment:
            (world.control / "hang").touch()
        await world.create("e", environment=environment, variant={"ContainerStartupHealthCheckTimeoutInSeconds": 60})
        endpoint = await world.until_status("e", "Failed")
        assert world.fleet.healthy("e") == []
        await world.change("e", status="Deleting")
        await world.until_gone("e")
        return endpoint

    assert run(tmp_path, work).failure_reason == NO_PING


def test_process_that_exits_at_start_is_restarted(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", environment={"EXIT_AT_START": "3"})
        endpoint = await world.until_status("e", "Failed")
        assert (endpoint.failure_reason, endpoint.current) == (NO_PING, 0)
        await until(lambda: sum("here" in line for line in world.said) == 2)

    run(tmp_path, work, start_attempts=2)


def test_missing_command_is_failure_reason(tmp_path: Path) -> None:
    async def work(world: World) -> str | None:
        await world.create("e")
        return (await world.until_status("e", "Failed")).failure_reason

    assert "No such file or directory: '/no/such/serve'" in run(tmp_path, work, serve=("/no/such/serve",))


def test_hijacking_variable_of_stored_model_starts_nothing(tmp_path: Path) -> None:
    async def work(world: World) -> str | None:
        await world.create("e", environment={"LD_PRELOAD": "x.so"})  # made for another runner, which allows it
        return (await world.until_status("e", "Failed")).failure_reason

    assert 'sets "LD_PRELOAD"' in str(run(tmp_path, work))


def test_missing_model_data_is_failure_reason(tmp_path: Path) -> None:
    async def work(world: World) -> str | None:
        await world.create("e", container={"ModelDataUrl": "s3://b/model.tar.gz"})
        return (await world.until_status("e", "Failed")).failure_reason

    assert str(run(tmp_path, work)).startswith('Failed to download model data for container "container_1" from URL')


# The environment of a container


def test_container_gets_only_its_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a real one")
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("LONGHAUL_THREADS", "7")

    async def work(world: World) -> tuple[Instance, dict[str, str]]:
        await world.create("e", environment={"MODE": "a b=c", "HF_MODEL_ID": "/opt/ml/model/deep"})
        await world.until_status("e", "InService")
        instance = world.fleet.healthy("e")[0]
        return instance, await ask(instance, "environment")

    instance, given = run(tmp_path, work, port=4999, region="eu-west-1", account="123456789012")
    assert given["MODE"] == "a b=c" and given["HF_MODEL_ID"] == given["SM_MODEL_DIR"] + "/deep"
    assert given["SAGEMAKER_BIND_TO_PORT"] == instance.url.rpartition(":")[2]
    assert given["SAGEMAKER_SAFE_PORT_RANGE"] == "23000-23009"
    assert given["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4999" and given["AWS_REGION"] == "eu-west-1"
    assert (given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"]) == ("123456789012", "local")
    assert given["PATH"] == os.environ["PATH"] and given["HOME"] == os.environ["HOME"]
    assert given["LONGHAUL_CHECKPOINT_URI"] == "s3://longhaul-checkpoints-eu-west-1-123456789012/e/AllTraffic"
    assert not {"AWS_PROFILE", "LONGHAUL_THREADS", "LONGHAUL_MODEL"} & set(given)


def test_network_isolation_takes_aws_away(tmp_path: Path) -> None:
    async def work(world: World) -> dict[str, str]:
        await world.create("e", EnableNetworkIsolation=True)
        await world.until_status("e", "InService")
        return dict(await ask(world.fleet.healthy("e")[0], "environment"))

    given = run(tmp_path, work)
    aws = {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "LONGHAUL_CHECKPOINT_URI"}
    assert not aws & set(given)
    assert given["AWS_CONFIG_FILE"] == given["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull


@pytest.mark.parametrize("uri", ["/a/directory", "s3://mine/journal", ""])
def test_models_own_journal_uri_is_kept(tmp_path: Path, uri: str) -> None:
    async def work(world: World) -> dict[str, str]:
        await world.create("e", environment={"LONGHAUL_CHECKPOINT_URI": uri})
        await world.until_status("e", "InService")
        return dict(await ask(world.fleet.healthy("e")[0], "environment"))

    assert run(tmp_path, work)["LONGHAUL_CHECKPOINT_URI"] == uri


# Replacement


def test_dead_instance_is_replaced_while_in_service(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", 2)
        await world.until_status("e", "InService")
        dead, other = world.fleet.healthy("e")
        os.kill((await world.pids([dead]))[0], signal.SIGKILL)
        instances = await world.until_healthy("e", lambda found: len(found) == 2 and dead not in found)
        assert other in instances
        await world.until("e", lambda endpoint: endpoint.current == 2)
        assert (await world.catalog.endpoint("e")).status == "InService"

    run(tmp_path, work)


@pytest.mark.parametrize("illness", ["sick", "hang"])
def test_instance_that_misses_pings_is_replaced(tmp_path: Path, illness: str) -> None:
    async def work(world: World) -> None:
        await world.create("e")
        await world.until_status("e", "InService")
        ill = world.fleet.healthy("e")[0]
        [pid] = await world.pids([ill])
        (world.control / f"{illness}-{ill.url.rpartition(':')[2]}").touch()
        await world.until_healthy("e", lambda found: found and ill not in found)
        assert not is_alive(pid)

    run(tmp_path, work, unhealthy_pings=2)


def test_failing_replacements_are_retried_with_failure_reason(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", variant={"ContainerStartupHealthCheckTimeoutInSeconds": 60})
        await world.until_status("e", "InService")
        (world.control / "sick").touch()
        endpoint = await world.until("e", lambda endpoint: endpoint.failure_reason)
        assert (endpoint.status, endpoint.failure_reason, endpoint.current) == ("InService", NO_PING, 0)
        (world.control / "sick").unlink()
        endpoint = await world.until("e", lambda endpoint: endpoint.current == 1 and not endpoint.failure_reason)
        assert endpoint.status == "InService"

    run(tmp_path, work)


# Updates


def test_update_switches_once_new_instances_are_healthy(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e")
        await world.until_status("e", "InService")
        old = world.fleet.healthy("e")
        [old_pid] = await world.pids(old)
        await world.update("e", "second", 2, environment={"WAIT_FOR_HEALTHY": "1"})
        await until(lambda: sum("here" in line for line in world.said) == 3)
        assert world.fleet.healthy("e") == old
        (world.control / "healthy").touch()
        endpoint = await world.until_status("e", "InService")
        assert (endpoint.config_name, endpoint.target_config_name, endpoint.current) == ("second", None, 2)
        new = await world.until_healthy("e", lambda found: len(found) == 2 and old[0] not in found)
        assert [(await world.row(instance))["config_name"] for instance in new] == ["second"] * 2
        await until(lambda: not is_alive(old_pid))

    run(tmp_path, work)


def test_failed_update_goes_back(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", 2)
        await world.until_status("e", "InService")
        old = world.fleet.healthy("e")
        await world.update("e", "second", 1, environment={"EXIT_AT_START": "1"})
        endpoint = await world.until_status("e", "InService")
        assert (endpoint.config_name, endpoint.target_config_name) == ("first", None)
        assert (endpoint.failure_reason, endpoint.desired, endpoint.current) == (NO_PING, 2, 2)
        assert world.fleet.healthy("e") == old

    run(tmp_path, work, start_attempts=1)


def test_scale_in_ends_idle_instances_first(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", 1)
        await world.until_status("e", "InService")
        await world.change("e", status="Updating", desired=3)
        endpoint = await world.until_status("e", "InService")
        assert endpoint.current == 3
        busy = world.fleet.healthy("e")[2]
        world.fleet.in_flight.update({instance.id: 1 for instance in world.fleet.healthy("e")} | {busy.id: 2})
        await world.change("e", status="Updating", desired=1)
        endpoint = await world.until_status("e", "InService")
        assert endpoint.current == 1 and world.fleet.healthy("e") == [busy]
        assert world.fleet.ended_busy == {"e": 2}
        await world.change("e", status="Updating", desired=0)
        endpoint = await world.until_status("e", "InService")
        assert endpoint.current == 0 and world.fleet.healthy("e") == []
        assert world.fleet.ended_busy == {"e": 3}
        await world.change("e", status="Updating", desired=1)
        assert (await world.until_status("e", "InService")).current == 1

    run(tmp_path, work)


def test_failed_scale_out_goes_back(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", environment={"WAIT_FOR_HEALTHY": "1"})
        (world.control / "healthy").touch()
        await world.until_status("e", "InService")
        (world.control / "healthy").unlink()
        (world.control / f"healthy-{world.fleet.healthy('e')[0].url.rpartition(':')[2]}").touch()
        await world.change("e", status="Updating", desired=2)
        endpoint = await world.until_status("e", "InService")
        assert (endpoint.failure_reason, endpoint.desired, endpoint.current) == (NO_PING, 1, 1)

    run(tmp_path, work, time_scale=1800.0, unhealthy_pings=50)


# The end


def test_deleted_endpoint_goes_with_its_instances(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", 2)
        await world.until_status("e", "InService")
        pids = await world.pids(world.fleet.healthy("e"))
        await world.change("e", status="Deleting")
        await world.until_gone("e")
        assert not any(is_alive(pid) for pid in pids) and world.fleet.healthy("e") == []
        await world.create("e")  # the name can be used again
        await world.until_status("e", "InService")

    run(tmp_path, work)


def test_deletion_changes_fleet_version(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", 0)
        await world.until_status("e", "InService")
        version = world.fleet.version
        await world.change("e", status="Deleting")
        await asyncio.wait_for(world.fleet.wait_for_change(version), TIMEOUT_S)
        with pytest.raises(NotFound):
            await world.catalog.endpoint("e")

    run(tmp_path, work)


def test_starting_endpoint_can_be_deleted(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", environment={"WAIT_FOR_HEALTHY": "1"})
        await until(lambda: any("here" in line for line in world.said))
        await world.change("e", status="Deleting")
        await world.until_gone("e")

    run(tmp_path, work)


def test_end_sends_sigterm_then_kills_session(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", environment={"IGNORE_SIGTERM": "1", "CHILD": "1"})
        await world.until_status("e", "InService")
        await until(lambda: any("child" in line for line in world.said))
        [pid] = await world.pids(world.fleet.healthy("e"))
        child = psutil.Process(pid).children()[0].pid
        started = time.monotonic()
        await world.change("e", status="Deleting")
        await world.until_gone("e")
        assert time.monotonic() - started >= 0.5
        assert not is_alive(pid) and not is_alive(child)

    run(tmp_path, work, stop_grace_s=0.5)


def test_dead_containers_session_is_killed(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.create("e", environment={"CHILD": "1"})
        await world.until_status("e", "InService")
        await until(lambda: any("child" in line for line in world.said))
        [pid] = await world.pids(world.fleet.healthy("e"))
        child = psutil.Process(pid).children()[0].pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not is_alive(child))

    run(tmp_path, work)


def test_next_gateway_restarts_instances_after_stop_all(tmp_path: Path) -> None:
    async def first(world: World) -> tuple[list[Instance], list[int]]:
        await world.create("e")
        await world.until_status("e", "InService")
        instances = world.fleet.healthy("e")
        return instances, await world.pids(instances)

    async def second(world: World) -> None:
        assert await world.until_healthy("e", lambda found: found) != old

    old, [pid] = run(tmp_path, first)
    assert not is_alive(pid)
    run(tmp_path, second)


# Another gateway

GATEWAY = """
import asyncio, sys, pathlib
from testing.endpoint.fleets import DeadBackend, World, quick
async def main():
    world = World(quick(pathlib.Path(sys.argv[1])), DeadBackend())
    await world.fleet.run()
asyncio.run(main())
"""


def gateway(data_dir: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", GATEWAY, str(data_dir)], cwd=ROOT)


def test_killed_gateways_instances_are_adopted(tmp_path: Path) -> None:
    async def before() -> list[int]:
        world = World(quick(tmp_path / "data"), None)  # it is not run: the other process does that
        killed = gateway(tmp_path / "data")
        for name in ("kept", "deleted"):
            await world.create(name, 2)
        await world.until_status("kept", "InService")
        await world.until_status("deleted", "InService")
        killed.kill()
        killed.wait()
        rows = await world.database.read(lambda db: db.execute("SELECT endpoint, pid FROM instances").fetchall())
        await world.catalog.delete("endpoint", "deleted")
        world.database.close()
        assert all(is_alive(row["pid"]) for row in rows)
        return [sorted(row["pid"] for row in rows if row["endpoint"] == name) for name in ("kept", "deleted")]

    async def after(world: World) -> None:
        instances = await world.until_healthy("kept", lambda found: len(found) == 2)
        assert sorted(await world.pids(instances)) == kept
        assert all([(await ask(instance, "environment"))[MARKER] == instance.id for instance in instances])
        await until(lambda: not any(is_alive(pid) for pid in deleted))
        os.kill(kept[0], signal.SIGKILL)
        replaced = await world.until_healthy("kept", lambda found: len(found) == 2 and found != instances)
        assert kept[0] not in await world.pids(replaced)

    kept, deleted = asyncio.run(before())
    assert len(kept) == len(deleted) == 2
    run(tmp_path, after)


def test_randomly_killed_gateways_leave_no_unknown_process(tmp_path: Path) -> None:
    async def create() -> None:
        world = World(quick(tmp_path / "data"), None)
        await world.create("e", 3)
        world.database.close()

    asyncio.run(create())
    for pause_s in (0.7, 0.75, 0.8, 0.85, 0.9, 1.0, 1.2):
        killed = gateway(tmp_path / "data")
        time.sleep(pause_s)  # the moment is the test
        killed.kill()
        killed.wait()

    async def after(world: World) -> None:
        known = set(await world.pids(await world.until_healthy("e", lambda found: len(found) == 3)))
        found = {process.pid for process in psutil.process_iter() if of_directory(process, tmp_path)}
        assert found == known

    run(tmp_path, after)


def test_process_with_unrecorded_pid_is_found(tmp_path: Path) -> None:
    async def before() -> str:
        world = World(quick(tmp_path / "data"), None)
        killed = gateway(tmp_path / "data")
        await world.create("e")
        await world.until_status("e", "InService")
        killed.kill()
        killed.wait()
        row = await world.database.write(
            lambda db: db.execute(
                "UPDATE instances SET pid = NULL, identity = NULL, state = 'starting' RETURNING id"
            ).fetchone()
        )
        world.database.close()
        return str(row["id"])

    async def after(world: World) -> None:
        assert [i.id for i in await world.until_healthy("e", lambda found: found)] == [identifier]

    identifier = asyncio.run(before())
    run(tmp_path, after)


@pytest.mark.parametrize(
    "changes",
    [
        {"port": 4567},
        {"region": "eu-west-1"},
        {"account": "111111111111"},
        {"serve": (sys.executable, MISBEHAVING, "")},
    ],
)
def test_instance_of_other_settings_is_replaced(tmp_path: Path, changes: dict[str, Any]) -> None:
    async def before() -> int:
        world = World(quick(tmp_path / "data"), None)
        killed = gateway(tmp_path / "data")
        await world.create("e")
        await world.until_status("e", "InService")
        killed.kill()
        killed.wait()
        row = await world.database.read(lambda db: db.execute("SELECT pid FROM instances").fetchone())
        world.database.close()
        return int(row["pid"])

    async def after(world: World) -> None:
        [instance] = await world.until_healthy("e", lambda found: found)
        assert await world.pids([instance]) != [old]
        given = await ask(instance, "environment")
        assert given["AWS_ENDPOINT_URL"].endswith(f":{changes.get('port', 4566)}")
        await until(lambda: not is_alive(old))

    old = asyncio.run(before())
    run(tmp_path, after, **changes)


def test_clock_set_back_does_not_extend_grace(tmp_path: Path) -> None:
    async def before() -> int:
        world = World(quick(tmp_path / "data"), None)
        killed = gateway(tmp_path / "data")
        await world.create("e", environment={"IGNORE_SIGTERM": "1"})
        await world.until_status("e", "InService")
        killed.kill()
        killed.wait()
        row = await world.database.write(
            lambda db: db.execute(
                "UPDATE instances SET state = 'ending', ending_at = ? RETURNING pid", (time.time() + 3600,)
            ).fetchone()
        )
        world.database.close()
        return int(row["pid"])

    async def after(world: World) -> None:
        await until(lambda: not is_alive(old))

    old = asyncio.run(before())
    run(tmp_path, after, stop_grace_s=0.2)


def test_reused_pid_is_left_alone(tmp_path: Path) -> None:
    async def first(world: World) -> None:
        await world.create("e")
        await world.until_status("e", "InService")

    run(tmp_path, first)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as bystander:

        async def second() -> None:
            world = World(quick(tmp_path / "data"), None)
            columns = "(id, endpoint, variant, config_name, state, slot, port, pid, identity, launched_at)"
            row = ("i-0", "e", "AllTraffic", "first", "healthy", 0, 1, bystander.pid, "another/1", time.time())
            await world.database.write(
                lambda db: db.execute(f"INSERT INTO instances {columns} VALUES (?,?,?,?,?,?,?,?,?,?)", row)
            )
            world.database.close()

        async def third(world: World) -> None:
            found = await world.until_healthy("e", lambda found: found)
            assert bystander.pid not in await world.pids(found)

        asyncio.run(second())
        run(tmp_path, third)
        assert bystander.poll() is None
        bystander.kill()


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    process = Process.start(["true"], {}, tmp_path / "log")
    eventually(lambda: psutil.Process(process.pid).status() == "zombie")
    assert identity_of(process.pid) is None and not process.is_alive
    asyncio.run(process.wait())
    assert process.exit_code == 0


def test_session_is_found_by_marker(tmp_path: Path) -> None:
    process = Process.start(["sleep", "600"], {"MARK": str(tmp_path)}, tmp_path / "log")
    found = eventually(lambda: find_session("MARK", str(tmp_path)))  # the kernel shows its environment a moment later
    assert (found.pid, found.identity) == (process.pid, process.identity)
    assert find_session("MARK", "another") is None
    asyncio.run(found.kill())
    eventually(lambda: not process.is_alive)


def marked(mark: str) -> list[psutil.Process]:
    def has_it(process: psutil.Process) -> bool:
        try:
            return process.environ().get("MARK") == mark and process.status() != "zombie"
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if has_it(process)]


def test_child_in_own_session_is_not_found(tmp_path: Path) -> None:
    mark = str(tmp_path)
    command = ["sh", "-c", "setsid sleep 600 & exec sleep 600"]
    process = Process.start(command, {"MARK": mark, "PATH": os.environ["PATH"]}, tmp_path / "log")
    eventually(lambda: [each.name() for each in marked(mark)] == ["sleep"] * 2)
    eventually(lambda: all(os.getsid(each.pid) == each.pid for each in marked(mark)))
    found = find_session("MARK", mark)
    assert found is not None and found.pid == process.pid
    asyncio.run(kill_marked("MARK", mark))
    assert marked(mark) == [] and not process.is_alive


def test_dead_leaders_descendants_are_killed(tmp_path: Path) -> None:
    mark = str(tmp_path)
    command = ["sh", "-c", "sleep 600 & setsid sleep 600 & exec sleep 600"]
    process = Process.start(command, {"MARK": mark, "PATH": os.environ["PATH"]}, tmp_path / "log")
    eventually(lambda: [each.name() for each in marked(mark)] == ["sleep"] * 3)
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not process.is_alive)
    assert find_session("MARK", mark) is None
    asyncio.run(kill_marked("MARK", mark))
    assert marked(mark) == []


# With S3


def test_model_data_lives_as_long_as_endpoint(tmp_path: Path, emulator: Emulator) -> None:
    s3 = emulator.client("s3")
    s3.create_bucket(Bucket="models")
    s3.put_object(Bucket="models", Key="m/config.json", Body=b"{}")
    source = {"S3Uri": "s3://models/m/", "S3DataType": "S3Prefix", "CompressionType": "None"}

    async def work(world: World) -> None:
        await world.create("e", container={"ModelDataSource": {"S3DataSource": source}})
        await world.until_status("e", "InService")
        instance = world.fleet.healthy("e")[0]
        [pid] = await world.pids([instance])
        given = await ask(instance, "environment")
        assert given["LONGHAUL_MODEL"] == given["SM_MODEL_DIR"]
        assert await ask(instance, "model") == ["config.json"]
        await world.change("e", status="Updating", desired=0)
        await world.until_status("e", "InService")
        await until(lambda: not is_alive(pid))
        assert Path(given["SM_MODEL_DIR"]).exists()  # it may be wanted again
        await world.change("e", status="Deleting")
        await world.until_gone("e")
        await until(lambda: not Path(given["SM_MODEL_DIR"]).exists())

    run(tmp_path, work, backend=emulator)


def buckets(emulator: Emulator) -> set[str]:
    return {bucket["Name"] for bucket in emulator.client("s3").list_buckets()["Buckets"]}


def test_journal_bucket_is_made_once_and_kept(tmp_path: Path, emulator: Emulator) -> None:
    s3, bucket = emulator.client("s3"), "longhaul-checkpoints-eu-west-1-000000000000"
    segment = {"Bucket": bucket, "Key": "e/AllTraffic/segment"}

    async def work(world: World) -> None:
        await world.create("own", environment={"LONGHAUL_CHECKPOINT_URI": ""})
        await world.until_status("own", "InService")
        assert bucket not in buckets(emulator)
        await world.create("e")
        await world.until_status("e", "InService")
        s3.put_object(**segment, Body=b"kept")
        await world.change("e", status="Updating", desired=2)
        await world.until_status("e", "InService")
        assert s3.get_object(**segment)["Body"].read() == b"kept"

    run(tmp_path, work, backend=emulator, region="eu-west-1")
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] == "eu-west-1"


def test_containers_start_without_backend(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(world: World) -> None:
        await world.create("e")
        await world.until_status("e", "InService")

    run(tmp_path, work)
    assert "longhaul-checkpoints-us-east-1-000000000000 for journals could not be made" in caplog.text


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    emulator = Emulator(tmp_path_factory.mktemp("emulator"))
    yield emulator
    emulator.close()
