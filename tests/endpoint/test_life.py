"""`python -m endpoint up` and `down` as processes: beginnings, ends, kills, and what is left after each."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from endpoint import commands
from examples import local_platform
from testing import ROOT
from testing.endpoint.endpoint_up import BUCKET, EndpointUp, Sent, run_endpoint
from testing.endpoint.soak import soak
from testing.server import eventually, free_port

STRICT = f"{sys.executable} {ROOT / 'testing/endpoint/strict_container.py'}"

Up = Callable[..., EndpointUp]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Up]:
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> EndpointUp:
            up = EndpointUp(tmp_path, *options)
            stack.callback(up.close)
            return up

        yield start


def hold(up: EndpointUp, go: Path) -> Sent:
    """Send a request that the container holds until there is a file `go`."""
    sent = up.submit("e", f"wait:{go}", body=b"held")
    eventually(lambda: "took do=wait" in up.says.read_text())
    return sent


def keys(up: EndpointUp, prefix: str) -> list[str]:
    found = up.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"] for entry in found.get("Contents", [])]


# Beginnings


def test_directory_and_port_serve_one_endpoint(start: Up, tmp_path: Path) -> None:
    up = start()
    data, another = str(tmp_path / "data"), str(tmp_path / "another")
    in_use = f"endpoint: {data} is in use by another `python -m endpoint`\n"
    for refused, why in {
        run_endpoint("up", "--data-dir", data, "--port", str(free_port())): in_use,
        run_endpoint("up", "--data-dir", another, "--port", str(up.port)): (
            f"endpoint: cannot listen on {up.url}: Address already in use; choose another --port\n"
        ),
    }.items():
        assert (refused.returncode, refused.stderr, refused.stdout) == (1, why, "")
    assert up.client("s3").list_buckets()["Buckets"] == []


def test_startup_error_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "settings.json").write_text('{"of": "another version"}')
    nowhere = f"http://127.0.0.1:{free_port()}"
    for arguments, why in {
        ("up", "--data-dir", str(tmp_path / "file")): f"cannot write to {tmp_path / 'file'}: ",
        ("up", "--data-dir", str(tmp_path / "new"), "--backend", nowhere): f"no answer from the backend at {nowhere}: ",
        ("down", "--data-dir", str(tmp_path / "other")): f"{tmp_path / 'other'} has settings of another version ",
    }.items():
        port = ("--port", str(free_port())) if arguments[0] == "up" else ()
        refused = run_endpoint(*arguments, *port)
        [line] = refused.stderr.splitlines()
        assert refused.returncode == 1 and line.startswith(f"endpoint: {why}")


def test_missing_engine_is_startup_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER", str(tmp_path / "no-client"))
    refused = run_endpoint("up", "--data-dir", str(tmp_path), "--port", str(free_port()), "--runner", "docker")
    [line] = refused.stderr.splitlines()
    assert refused.returncode == 1
    assert line.startswith("endpoint: --runner docker needs a container engine: ") and "no-client" in line


def test_down_without_up_says_so(tmp_path: Path) -> None:
    refused = run_endpoint("down", "--data-dir", str(tmp_path / "data"))
    assert refused.returncode == 1
    assert refused.stderr == f"endpoint: no endpoint was started in {tmp_path / 'data'}\n"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--port", "0", "invalid port '0': expected 1 to 65535"),
        ("--port", "http", "invalid port 'http': expected 1 to 65535"),
        ("--time-scale", "0", "invalid time scale '0': expected 1 to 1000"),
        ("--time-scale", "nan", "invalid time scale 'nan': expected 1 to 1000"),
        ("--account", "12", "invalid account '12': expected 12 digits"),
        ("--concurrency", "0", "invalid concurrency '0': expected 1 to 1000"),
        ("--runner", "magic", "invalid choice: 'magic'"),
        ("--pull", "always", "invalid choice: 'always'"),
        ("--pull", "missing", "not with --runner process"),
        ("--serve", "", "the command is empty"),
        ("--serve", "'", 'invalid command "\'": No closing quotation'),
    ],
)
def test_invalid_options_are_refused(tmp_path: Path, option: str, value: str, why: str) -> None:
    refused = run_endpoint("up", "--data-dir", str(tmp_path / "data"), option, value)
    assert refused.returncode == 2
    assert f"error: argument {option}: {why}" in refused.stderr.splitlines()[-1]


# Ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_processes_and_keeps_data(start: Up, tmp_path: Path, number: signal.Signals) -> None:
    up = start()
    up.make_places()
    up.make_endpoint("e")
    done, held = up.submit("e").ended(), hold(up, tmp_path / "go")
    assert len(up.processes()) == 3
    assert up.end(number) == 0
    assert up.processes() == {}
    up.start()
    assert up.client("sagemaker").describe_endpoint(EndpointName="e")["EndpointStatus"] == "InService"
    assert done.outputs() != [] and done.notices() != []
    (tmp_path / "go").touch()
    assert held.ended().outputs()[0]["body"] == b"held"
    assert held.notice()["invocationStatus"] == "Completed"


def test_ending_endpoint_takes_last_journal_records_only(start: Up) -> None:
    up = start()
    up.make_places()
    up.make_endpoint("e", container={"Image": "image", "Environment": {"CONTAINER_LAST": f"{BUCKET}/last"}})
    assert up.end() == 0
    up.start()
    assert up.client("s3").get_object(Bucket=BUCKET, Key="last")["Body"].read() == b"503"


@pytest.mark.parametrize("is_killed", [False, True], ids=["after an end", "after a kill"])
def test_early_signal_ends_all_processes(start: Up, tmp_path: Path, is_killed: bool) -> None:
    up = start()
    up.make_endpoint("e")
    if is_killed:
        up.kill()
    else:
        up.end()
    settings = tmp_path / "data" / "settings.json"
    settings.unlink()
    up.launch()
    eventually(settings.exists)
    assert up.end() == 0
    assert up.processes() == {}


def test_down_after_kill_keeps_data(start: Up, tmp_path: Path) -> None:
    up = start()
    up.make_places()
    up.make_endpoint("e", instances=2)
    held = hold(up, tmp_path / "go")
    up.kill()
    assert len(up.processes()) == 3
    for _ in range(2):  # the second finds nothing to end
        down = up.down()
        assert down.returncode == 0, down.stderr
        assert up.processes() == {}
    (tmp_path / "go").touch()
    up.start()
    assert held.ended().outputs()[0]["body"] == b"held"


def test_down_ends_running_up(start: Up) -> None:
    up = start()
    up.make_endpoint("e")
    assert len(up.processes()) == 3
    down = up.down()
    assert down.returncode == 0, down.stderr
    assert up.process.wait(5) == 0
    assert up.processes() == {}


def test_lock_of_ending_process_is_awaited(tmp_path: Path) -> None:
    """Its last thread may hold the lock a little longer."""
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        release = threading.Timer(0.2, fcntl.flock, (lock, fcntl.LOCK_UN))
        release.start()
        with commands.lock_data_dir(tmp_path):
            assert release.finished.is_set()
        release.join()


def test_down_ignores_reused_pid(start: Up, tmp_path: Path) -> None:
    up = start()
    up.kill()
    lock = tmp_path / "data" / "lock"
    with subprocess.Popen([sys.executable, "-c", "input()", "endpoint"], stdin=subprocess.PIPE) as other:
        lock.write_text(json.dumps(json.loads(lock.read_text()) | {"pid": other.pid}))
        assert up.down().returncode == 0
        assert other.poll() is None
    assert up.processes() == {}


def test_down_ends_instances_without_backend(start: Up, tmp_path: Path) -> None:
    up = start()
    up.make_endpoint("e")
    up.kill()
    settings = tmp_path / "data" / "settings.json"
    nowhere = f"http://127.0.0.1:{free_port()}"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"backend": nowhere}))
    down = up.down()
    assert down.returncode == 0 and f"no answer from the backend at {nowhere}" in down.stderr
    assert len(up.processes()) == 1  # the embedded backend: the one of these settings is elsewhere
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"backend": "embedded"}))


def test_broken_database_is_named_and_ends_all(start: Up, tmp_path: Path) -> None:
    up = start()
    up.make_endpoint("e")
    up.kill()
    data = tmp_path / "data"
    for file in data.glob("endpoint.sqlite*"):
        file.unlink()
    (data / "endpoint.sqlite").write_bytes(b"no database" * 1000)
    why = f"endpoint: cannot use {data / 'endpoint.sqlite'} as the database: file is not a database\n"
    down = up.down()
    assert (down.returncode, down.stderr) == (1, why)
    assert up.processes() == {}
    refused = run_endpoint("up", "--data-dir", str(data), "--port", str(up.port))
    assert (refused.returncode, refused.stderr) == (1, why)
    assert up.processes() == {}


def test_signal_ends_despite_hanging_backend(start: Up) -> None:
    up = start()
    up.make_places()
    up.make_endpoint("e")
    up.submit("e").ended()
    [backend] = [
        process
        for process in map(psutil.Process, up.processes())
        if process.pid != up.process.pid and "endpoint.backend.emulator" in process.cmdline()
    ]
    backend.suspend()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(40) == 0
    assert up.processes() == {}


def test_unread_pipe_blocks_nothing(tmp_path: Path) -> None:
    port = free_port()
    reader, writer = os.pipe()
    os.write(writer, bytes(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)))
    with subprocess.Popen(
        [sys.executable, "-m", "endpoint", "up", "--data-dir", str(tmp_path), "--port", str(port)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=writer,
        stderr=writer,
    ) as process:

        def answers() -> bool:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_longhaul/health", timeout=5).close()
                return True
            return False

        eventually(answers)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    os.close(reader)
    os.close(writer)


def test_quickstart_leaves_running_endpoint_alone(start: Up, tmp_path: Path) -> None:
    data = tmp_path / "data"
    local_platform.fail_if_in_use(data)
    up = start()
    with pytest.raises(local_platform.Failed, match=f"end it with .* down --data-dir {data}"):
        local_platform.fail_if_in_use(data)
    up.end()
    local_platform.fail_if_in_use(data)


# Kills


def test_next_gateway_adopts_and_redelivers_after_kill(start: Up, tmp_path: Path) -> None:
    up = start()
    up.make_places()
    up.make_endpoint("e")
    held = hold(up, tmp_path / "go")
    up.kill()
    left = up.processes()
    assert len(left) == 2
    eventually(lambda: "the caller hung up" in up.says.read_text())
    up.start()
    eventually(lambda: up.says.read_text().count("took do=wait") == 2)
    (tmp_path / "go").touch()
    assert held.ended().outputs()[0]["body"] == b"held"
    assert held.notice()["invocationStatus"] == "Completed"
    assert up.processes() == left | {up.process.pid: up.processes()[up.process.pid]}
    assert keys(up, "out/") == [held.output.removeprefix(f"s3://{BUCKET}/")] and keys(up, "failed/") == []


def test_kills_lose_none_of_many_requests(tmp_path: Path) -> None:
    faults: list[str] = []
    told = soak(
        tmp_path,
        serve=STRICT,
        environment={},
        requests=64,
        clients=8,
        kills=2,
        kill_backend=False,
        seed=0,
        faults=faults,
    )
    assert faults == []
    assert told["accepted"] == 64 and told["notices"] >= 64


# What one sees of it


@pytest.mark.parametrize(
    "headers",
    [{"Host": "example.com"}, {"Origin": "http://example.com"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
    ids=str,
)
def test_port_refuses_web_pages(seen: EndpointUp, headers: dict[str, str]) -> None:
    for target in ({"X-Amz-Target": "SageMaker.ListModels"}, {}):
        connection = http.client.HTTPConnection("127.0.0.1", seen.port, timeout=60)
        connection.request("POST", "/", b"{}", {"Content-Type": "application/x-amz-json-1.1"} | target | headers)
        answer = connection.getresponse()
        assert answer.status == 403 and b"AccessDenied" in answer.read()
        assert not any(name.lower().startswith("access-control-") for name, _ in answer.getheaders())
        connection.close()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointUp]:
    """Start an endpoint process with `e`, an endpoint of the strict container, on a quick clock."""
    up = EndpointUp(tmp_path_factory.mktemp("up"), "--serve", STRICT, "--time-scale", "600")
    try:
        up.make_places()
        up.make_endpoint("e")
        yield up
    finally:
        up.close()


def test_endpoint_change_notifies_both_topics(seen: EndpointUp) -> None:
    def tests() -> int:
        return sum(notice["eventName"] == "TestNotification" for notice in seen.hear())

    eventually(lambda: tests() == 2)
    weights = [{"VariantName": "main", "DesiredWeight": 2.0}]
    seen.client("sagemaker").update_endpoint_weights_and_capacities(
        EndpointName="e", DesiredWeightsAndCapacities=weights
    )
    seen.wait_until_in_service("e")
    eventually(lambda: tests() == 4)


def test_container_output_reaches_logs_and_terminal(seen: EndpointUp) -> None:
    logs, group = seen.client("logs"), "/aws/sagemaker/Endpoints/e"
    body = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 1}}).encode()
    seen.submit("e", body=body).ended()

    def streams() -> dict[str, list[str]]:
        names = [stream["logStreamName"] for stream in logs.describe_log_streams(logGroupName=group)["logStreams"]]
        return {
            name: [event["message"] for event in logs.get_log_events(logGroupName=group, logStreamName=name)["events"]]
            for name in names
        }

    line = f"took {len(body)} bytes"
    eventually(lambda: any(line in lines for lines in streams().values()))
    [(name, lines)] = [(name, lines) for name, lines in streams().items() if line in lines]
    variant, _, instance = name.partition("/")
    assert variant == "main" and instance.startswith("i-")
    assert lines[0] == "the container is here"
    eventually(lambda: f"[e {instance}] {line}\n" in seen.log())


def test_metrics_come_soon_with_quick_clock(seen: EndpointUp) -> None:
    seen.submit("e", body=json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 1}}).encode()).ended()
    seen.submit("e", body=json.dumps({"inputs": "x", "parameters": {"max_new_tokens": "x"}}).encode()).ended()
    for name in ("InvocationsProcessed", "InvocationFailures", "ModelLatency", "TimeInBacklog"):
        eventually(lambda name=name: (seen.metric("e", name, VariantName="main") or 0) > 0)  # type: ignore[misc]
    for name in ("ApproximateBacklogSize", "ApproximateBacklogSizePerInstance", "HasBacklogWithoutCapacity"):
        eventually(lambda name=name: seen.metric("e", name, "Maximum") is not None)  # type: ignore[misc]


# The real container


def test_serve_runs_model_from_s3(start: Up, tiny_model_dir: Path) -> None:
    up = start("--serve", str(ROOT / "serve"))
    up.make_places()
    for file in tiny_model_dir.iterdir():
        up.client("s3").upload_file(str(file), BUCKET, f"model/{file.name}")
    source = {"S3Uri": f"s3://{BUCKET}/model/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    settings = {"LONGHAUL_THREADS": "1", "LONGHAUL_KV_CACHE_TOKENS": "4096", "LONGHAUL_MAX_MODEL_LEN": "512"}
    container = {"Image": "longhaul", "Environment": settings, "ModelDataSource": {"S3DataSource": source}}
    up.make_endpoint("e", container=container)
    body = json.dumps({"inputs": "Once", "parameters": {"max_new_tokens": 5}}).encode()
    good = up.submit("e", body=body, ContentType="application/json")
    bad = up.submit("e", body=b'{"inputs": 1}', ContentType="application/json")
    assert json.loads(good.ended().outputs()[0]["body"])[0]["generated_text"]
    assert good.notice()["invocationStatus"] == "Completed"
    assert bad.ended().outputs() == [] and bad.failures() != []
    assert "Received client error (400)" in bad.notice()["failureReason"]
    assert up.end() == 0
    assert up.processes() == {}
