from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from endpoint.backend.backend import Backend, BackendError
from endpoint.backend.emulator import read_running
from endpoint.settings import Settings
from testing import ROOT
from testing.server import free_port

ACCOUNT = "111122223333"


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(data_dir=tmp_path, account=ACCOUNT)
    yield settings
    asyncio.run(Backend(settings).stop())


def with_backend(settings: Settings, work: Callable[[Backend], Awaitable[Any]] | None = None) -> Any:
    """Run `work` with a started backend, and leave the emulator running, as when the gateway alone ends."""

    async def run() -> Any:
        backend = Backend(settings)
        await backend.start()
        try:
            return await work(backend) if work else backend.pid
        finally:
            backend.close()

    return asyncio.run(run())


def doing(work: Callable[[Backend], Any]) -> Callable[[Backend], Awaitable[Any]]:
    async def run(backend: Backend) -> Any:
        return await asyncio.to_thread(work, backend)

    return run


def fill(backend: Backend) -> None:
    backend.client("s3").create_bucket(Bucket="bucket")
    backend.client("s3").put_object(Bucket="bucket", Key="kéy", Body=b"object", Metadata={"a": "b"}, Tagging="t=1")
    backend.client("sqs").create_queue(QueueName="queue")
    backend.client("sns").create_topic(Name="topic")
    backend.client("logs").create_log_group(logGroupName="group")


def holdings(backend: Backend) -> dict[str, Any]:
    s3 = backend.client("s3")
    answer = s3.get_object(Bucket="bucket", Key="kéy")
    return {
        "object": (answer["Body"].read(), answer["Metadata"], answer["TagCount"]),
        "queues": len(backend.client("sqs").list_queues().get("QueueUrls", [])),
        "topics": len(backend.client("sns").list_topics()["Topics"]),
        "groups": len(backend.client("logs").describe_log_groups()["logGroups"]),
    }


OBJECT = (b"object", {"a": "b"}, 1)
ALL = {"object": OBJECT, "queues": 1, "topics": 1, "groups": 1}
OBJECTS_ONLY = {"object": OBJECT, "queues": 0, "topics": 0, "groups": 0}


def test_emulator_listens_on_one_loopback_port(settings: Settings) -> None:
    def work(backend: Backend) -> list[tuple[str, bool]]:
        fill(backend)
        process = psutil.Process(backend.pid)
        assert not process.children()
        sockets = process.net_connections("inet")
        return [(s.laddr.ip, backend.url.endswith(f":{s.laddr.port}")) for s in sockets if s.status == "LISTEN"]

    assert with_backend(settings, doing(work)) == [("127.0.0.1", True)]


def test_names_have_account_and_gateway_address(settings: Settings) -> None:
    def work(backend: Backend) -> list[str]:
        queue = backend.client("sqs").create_queue(QueueName="queue")["QueueUrl"]
        arn = backend.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
        topic = backend.client("sns").create_topic(Name="topic")["TopicArn"]
        caller = backend.client("sts").get_caller_identity()["Account"]
        return [queue, arn["Attributes"]["QueueArn"], topic, caller]

    assert with_backend(settings, doing(work)) == [
        f"http://127.0.0.1:4566/{ACCOUNT}/queue",
        f"arn:aws:sqs:us-east-1:{ACCOUNT}:queue",
        f"arn:aws:sns:us-east-1:{ACCOUNT}:topic",
        ACCOUNT,
    ]


def test_next_gateway_adopts_emulator_with_data(settings: Settings) -> None:
    def work(backend: Backend) -> int | None:
        fill(backend)
        return backend.pid

    pid = with_backend(settings, doing(work))
    assert with_backend(settings) == pid
    assert with_backend(settings, doing(holdings)) == ALL


def test_emulator_survives_gateway_kill(settings: Settings) -> None:
    script = (
        "import asyncio, sys, pathlib\n"
        "from endpoint.backend.backend import Backend, Settings\n"
        "async def main():\n"
        f"    backend = Backend(Settings(data_dir=pathlib.Path(sys.argv[1]), account={ACCOUNT!r}))\n"
        "    await backend.start()\n"
        "    print(backend.pid, flush=True)\n"
        "    await backend.watch()\n"
        "asyncio.run(main())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(settings.data_dir)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        gateway.kill()
    assert with_backend(settings) == pid


def test_clean_stop_keeps_everything(settings: Settings) -> None:
    pid = with_backend(settings, doing(lambda backend: (fill(backend), backend.pid)[1]))
    asyncio.run(Backend(settings).stop())
    assert not psutil.pid_exists(pid)
    assert with_backend(settings, doing(holdings)) == ALL


def test_killed_emulator_restarts_with_objects_only(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    async def work(backend: Backend) -> Any:
        await asyncio.to_thread(fill, backend)
        watch = asyncio.create_task(backend.watch())
        pid, url = backend.pid, backend.url
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while backend.pid == pid:
            await asyncio.sleep(0.01)
        held = await asyncio.to_thread(holdings, backend)  # its clients outlast the restart
        assert backend.url == url
        watch.cancel()
        return held

    assert with_backend(settings, work) == OBJECTS_ONLY
    assert "Objects in S3 are kept; queues and their messages" in caplog.text


def test_kill_reverts_to_last_clean_stop(settings: Settings) -> None:
    with_backend(settings, doing(fill))
    asyncio.run(Backend(settings).stop())
    url = f"http://127.0.0.1:4566/{ACCOUNT}/queue"

    def change(backend: Backend) -> None:
        backend.client("sqs").delete_queue(QueueUrl=url)
        backend.client("sqs").create_queue(QueueName="another")
        assert backend.pid is not None
        os.kill(backend.pid, signal.SIGKILL)

    with_backend(settings, doing(change))
    queues = with_backend(settings, doing(lambda backend: backend.client("sqs").list_queues()["QueueUrls"]))
    assert queues == [url]


def test_emulator_of_other_settings_restarts_cleanly(settings: Settings) -> None:
    pid = with_backend(settings, doing(lambda backend: (fill(backend), backend.pid)[1]))
    changed = Settings(data_dir=settings.data_dir, account=ACCOUNT, port=4567)
    assert with_backend(changed) != pid
    assert with_backend(changed, doing(holdings)) == ALL


def test_process_with_reused_pid_is_left_alone(settings: Settings) -> None:
    directory = settings.data_dir / "backend"
    directory.mkdir()
    with subprocess.Popen(["sleep", "60"]) as other:
        running = {"pid": other.pid, "identity": "another boot/1", "port": free_port()}
        (directory / "process.json").write_text(json.dumps(running))
        assert with_backend(settings) != other.pid
        asyncio.run(Backend(settings).stop())
        assert other.poll() is None
        other.kill()


def test_broken_process_file_is_ignored(settings: Settings) -> None:
    (settings.data_dir / "backend").mkdir()
    (settings.data_dir / "backend" / "process.json").write_text('{"pid": ')
    pid = with_backend(settings)
    running = read_running(settings.data_dir / "backend")
    assert running is not None
    assert running.pid == pid


def test_failed_start_names_log_file(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    (tmp_path / "backend").mkdir()
    (tmp_path / "backend" / "tmp").write_text("in the way")
    with pytest.raises(BackendError, match=r"did not start; see .*backend/log"):
        with_backend(settings)
    assert "FileExistsError" in (tmp_path / "backend" / "log").read_text()


def test_clients_ignore_user_settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings.data_dir / "config"
    config.write_text("[default]\nregion = eu-north-1\nendpoint_url = http://127.0.0.1:9\n")
    for name, value in {
        "AWS_PROFILE": "no-such-profile",
        "AWS_CONFIG_FILE": str(config),
        "AWS_ACCESS_KEY_ID": "AKIAREALREALREALREAL",
        "AWS_SECRET_ACCESS_KEY": "real",
        "AWS_SESSION_TOKEN": "real",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "SERVICES": "s3",
        "AUTH": "true",
    }.items():
        monkeypatch.setenv(name, value)

    def work(backend: Backend) -> tuple[str, str]:
        client = backend.client("sts")
        signed: list[str] = []
        client.meta.events.register("before-send", lambda request, **_: signed.append(str(request.headers)))
        return client.get_caller_identity()["Account"], signed[0]

    account, headers = with_backend(settings, doing(work))
    assert account == ACCOUNT
    assert f"Credential={ACCOUNT}/" in headers
    assert "us-east-1" in headers
    assert "X-Amz-Security-Token" not in headers


@pytest.mark.parametrize("headers", [{"origin": "http://localhost:4566"}, {"host": "rebound.example.com"}])
def test_emulator_port_refuses_web_pages(settings: Settings, headers: dict[str, str]) -> None:
    def work(backend: Backend) -> int:
        return httpx.post(f"{backend.url}/_ministack/reset", headers=headers, trust_env=False).status_code

    assert with_backend(settings, doing(work)) == 403


def test_url_that_answers_is_backend(settings: Settings) -> None:
    def work(backend: Backend) -> str:
        backend.client("s3").create_bucket(Bucket="bucket")
        return backend.url

    url = with_backend(settings, doing(work))
    external = Settings(data_dir=settings.data_dir / "other", account=ACCOUNT, backend=f"{url}/")

    async def buckets(backend: Backend) -> list[str]:
        answer = await asyncio.to_thread(backend.client("s3").list_buckets)
        return [bucket["Name"] for bucket in answer["Buckets"]]

    assert with_backend(external, buckets) == ["bucket"]
    asyncio.run(Backend(external).stop())
    assert with_backend(settings, doing(lambda backend: backend.url)) == url
    assert not external.data_dir.exists()


def test_url_without_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no answer from the backend"):
        with_backend(Settings(data_dir=tmp_path, backend=f"http://127.0.0.1:{free_port()}"))
