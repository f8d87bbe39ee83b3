from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError

from endpoint.cloudwatch.container_logs import SCHEMA, ContainerLogs
from endpoint.state.database import Database
from testing.emulator import Emulator
from testing.endpoint.fleets import a_world, quick

GROUP = "/aws/sagemaker/Endpoints/e"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    emulator = Emulator(tmp_path_factory.mktemp("emulator"))
    yield emulator
    emulator.close()


class Flaky:
    """The emulator behind a line that can be cut."""

    def __init__(self, emulator: Emulator) -> None:
        self.cut = False
        self._emulator = emulator

    def client(self, service: str) -> Any:
        if self.cut:
            raise EndpointConnectionError(endpoint_url="logs")
        return self._emulator.client(service)


class Tail:
    """One instance's log, written by the test."""

    def __init__(self, directory: Path, backend: Any, instance: str, max_bytes: int = 1 << 26) -> None:
        self.path = directory / instance / "log"
        self.path.parent.mkdir(exist_ok=True)
        self.instance = instance
        self.echoed: list[str] = []
        self.database = Database(directory / "db", SCHEMA)
        self.logs = ContainerLogs(self.database, backend, max_bytes, self.echoed.append)

    async def __aenter__(self) -> Tail:
        await self.logs.load([self.instance])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.database.close()

    async def follow(self) -> None:
        await self.logs.follow(self.instance, "e", "AllTraffic", self.path)

    async def write(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)
        await self.logs.send_all()


def sent(emulator: Emulator, instance: str) -> list[str]:
    """Return all messages of the stream."""
    client = emulator.client("logs")
    events: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = client.get_log_events(
            logGroupName=GROUP, logStreamName=f"AllTraffic/{instance}", startFromHead=True, **token
        )
        if not page["events"]:
            return events
        events += [event["message"] for event in page["events"]]
        token = {"nextToken": page["nextForwardToken"]}


def test_lines_arrive_under_sagemakers_names(tmp_path: Path, emulator: Emulator) -> None:
    async def run() -> None:
        async with Tail(tmp_path, emulator, "i-1") as tail:
            await tail.follow()
            await tail.write("eins\n\nzwölf\r\nunfin".encode())
            assert sent(emulator, "i-1") == ["eins", "zwölf"]
            await tail.write(b"ished\n\xff\n")
            assert sent(emulator, "i-1") == ["eins", "zwölf", "unfinished", "\ufffd"]
            assert tail.echoed[0] == "[e i-1] eins" and tail.echoed[-2] == "[e i-1] unfinished"

    asyncio.run(run())


def test_ended_log_is_sent_and_directory_removed(tmp_path: Path, emulator: Emulator) -> None:
    async def run() -> None:
        async with Tail(tmp_path, emulator, "i-2") as tail:
            await tail.follow()
            await tail.write(b"last words, without an end")
            await tail.logs.end("i-2")
            await tail.logs.send_all()
            assert sent(emulator, "i-2") == ["last words, without an end"]
            assert not tail.path.parent.exists()

    asyncio.run(run())


def test_next_gateway_goes_on_in_log(tmp_path: Path, emulator: Emulator) -> None:
    async def run() -> None:
        async with Tail(tmp_path, emulator, "i-3") as tail:
            await tail.follow()
            await tail.write(b"one\n")
        async with Tail(tmp_path, emulator, "i-3") as tail:
            await tail.write(b"two\n")
            assert tail.echoed == ["[e i-3] two"]
        async with Tail(tmp_path, emulator, "i-3") as tail:
            with tail.path.open("ab") as file:
                file.write(b"three\n")
            await tail.logs.load([])  # the instance is dead
            await tail.logs.send_all()
            assert sent(emulator, "i-3") == ["one", "two", "three"]
            assert not tail.path.parent.exists()

    asyncio.run(run())


def test_lines_wait_for_dead_backend(tmp_path: Path, emulator: Emulator) -> None:
    async def run() -> None:
        flaky = Flaky(emulator)
        async with Tail(tmp_path, flaky, "i-4") as tail:
            await tail.follow()
            flaky.cut = True
            await tail.write(b"one\n")
            await tail.write(b"two\n")
            await tail.logs.end("i-4")
            await tail.logs.send_all()
            assert tail.echoed == ["[e i-4] one", "[e i-4] two"]  # the terminal doesn't wait
            flaky.cut = False
            await tail.logs.send_all()
            assert sent(emulator, "i-4") == ["one", "two"] and len(tail.echoed) == 2

    asyncio.run(run())


def test_lost_log_groups_are_made_again(tmp_path: Path, emulator: Emulator) -> None:
    async def run() -> None:
        async with Tail(tmp_path, emulator, "i-5") as tail:
            await tail.follow()
            await tail.write(b"one\n")
            emulator.client("logs").delete_log_group(logGroupName=GROUP)
            await tail.write(b"two\n")
            assert sent(emulator, "i-5") == ["two"]

    asyncio.run(run())


def test_oldest_unsent_lines_are_dropped(tmp_path: Path, emulator: Emulator) -> None:
    async def run() -> None:
        flaky = Flaky(emulator)
        async with Tail(tmp_path, flaky, "i-6", max_bytes=100) as tail:
            await tail.follow()
            flaky.cut = True
            for number in range(100):
                await tail.write(b"line %03d\n" % number)
            flaky.cut = False
            await tail.logs.send_all()
            lines = sent(emulator, "i-6")
            assert lines[-1] == "line 099" and len(lines) <= 12

    asyncio.run(run())


def test_sent_lines_take_no_disk(tmp_path: Path, emulator: Emulator) -> None:
    async def run() -> None:
        async with Tail(tmp_path, emulator, "i-7") as tail:
            await tail.follow()
            await tail.write(b"x" * 100_000 + b"\n" + b"y" * 100_000 + b"\n")
            os.sync()
            assert tail.path.stat().st_size == 200_002
            assert tail.path.stat().st_blocks * 512 <= 8192
            await tail.write(b"z\n")
            assert [line[:1] for line in sent(emulator, "i-7")] == ["x", "y", "z"]

    asyncio.run(run())


def test_oversized_line_comes_in_pieces(tmp_path: Path, emulator: Emulator) -> None:
    async def run() -> None:
        async with Tail(tmp_path, emulator, "i-8") as tail:
            await tail.follow()
            await tail.write(b"x" * 3_000_000 + b"\nshort\n")
            lines = sent(emulator, "i-8")
            assert "".join(lines[:-1]) == "x" * 3_000_000 and lines[-1] == "short"
            assert max(len(line.encode()) for line in lines) <= 262_144 - 26

    asyncio.run(run())


class Recorder:
    """Takes PutLogEvents, and keeps the messages of each call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.exceptions = boto3.client("logs", region_name="us-east-1").exceptions

    def client(self, service: str) -> Recorder:
        return self

    def put_log_events(self, logEvents: list[dict[str, Any]], **_: Any) -> None:
        self.calls.append([event["message"] for event in logEvents])


def test_events_keep_to_the_limits(tmp_path: Path) -> None:
    recorder = Recorder()

    async def run() -> None:
        async with Tail(tmp_path, recorder, "i-9") as tail:
            await tail.follow()
            await tail.write(b"x\n" * 10_001 + b"\n\n" + (b"y" * 80_000 + b"\n") * 24 + b"\nz\n")

    asyncio.run(run())
    assert all(len(messages) <= 10_000 for messages in recorder.calls)
    assert all(sum(len(message) + 26 for message in messages) <= 1_048_576 for messages in recorder.calls)
    assert [text[0] for messages in recorder.calls for text in messages] == ["x"] * 10_001 + ["y"] * 24 + ["z"]


def test_empty_lines_are_not_sent(tmp_path: Path) -> None:
    recorder = Recorder()

    async def run() -> None:
        async with Tail(tmp_path, recorder, "i-10") as tail:
            await tail.follow()
            await tail.write(b"\n\n")

    asyncio.run(run())
    assert recorder.calls == []


def test_containers_output_arrives_to_last_word(tmp_path: Path, emulator: Emulator) -> None:
    async def run() -> str:
        async with a_world(quick(tmp_path / "data"), emulator) as world:
            await world.create("talker", environment={"SAY": "hello"})
            await world.until_status("talker", "InService")
            return world.fleet.healthy("talker")[0].id

    instance = asyncio.run(run())
    client = emulator.client("logs")
    stream = {"logGroupName": "/aws/sagemaker/Endpoints/talker", "logStreamName": f"AllTraffic/{instance}"}
    messages = [event["message"] for event in client.get_log_events(**stream, startFromHead=True)["events"]]
    assert messages[0].endswith("hello") and messages[-1] == "bye"
    assert list((tmp_path / "data" / "instances").iterdir()) == []
