from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from endpoint.backend.backend import Backend
from endpoint.cloudwatch.data_log import DataLog
from testing.endpoint.cut_line import Line, a_backend, running, until


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with a_backend(tmp_path_factory.mktemp("backend")) as backend:
        yield backend


def a_log(backend: Any, **options: Any) -> DataLog:
    return DataLog(backend, **options)


def events(backend: Backend, endpoint: str, instance: str = "i-1", variant: str = "AllTraffic") -> list[dict[str, Any]]:
    client = backend.client("logs")
    stream = {
        "logGroupName": f"/aws/sagemaker/Endpoints/{endpoint}",
        "logStreamName": f"{variant}/{instance}/data-log",
    }
    found: list[dict[str, Any]] = []
    token: dict[str, str] = {}
    while True:
        try:
            page = client.get_log_events(**stream, startFromHead=True, **token)
        except client.exceptions.ResourceNotFoundException:
            return []
        if not page["events"]:
            return found
        found += page["events"]
        token = {"nextToken": page["nextForwardToken"]}


def texts(backend: Backend, endpoint: str, instance: str = "i-1") -> list[str]:
    """Return the messages without the prefix that the platform puts before them."""
    return [event["message"].partition("] [")[2].partition("] ")[2] for event in events(backend, endpoint, instance)]


def test_lines_have_the_platforms_form(backend: Backend) -> None:
    async def run() -> None:
        log = a_log(backend)
        log.write("form", "AllTraffic", "i-1", "8a80ed4e", 'Received server error (500) from primary with message "ö"')
        await log.send_all()

    before = time.time()
    asyncio.run(run())
    (event,) = events(backend, "form")
    said = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}):\[sagemaker logs\] \[8a80ed4e\] Received server error \(500\)"
    found = re.match(said, event["message"])
    assert found is not None and event["message"].endswith(' from primary with message "ö"')
    at = datetime.fromisoformat(found[1]).replace(tzinfo=UTC).timestamp()
    assert before - 0.01 <= at <= time.time() and event["timestamp"] == round(at * 1000)


def test_each_instance_has_own_ordered_stream(backend: Backend) -> None:
    async def run() -> None:
        log = a_log(backend)
        async with running(log.run):
            for number in range(50):
                log.write("streams", "AllTraffic", f"i-{number % 2}", "id", str(number))
            await until(lambda: len(texts(backend, "streams", "i-1")) == 25)

    asyncio.run(run())
    assert texts(backend, "streams", "i-0") == [str(number) for number in range(0, 50, 2)]
    assert texts(backend, "streams", "i-1") == [str(number) for number in range(1, 50, 2)]


def test_lines_wait_for_dead_backend(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        line = Line(backend, is_cut=True)
        log = a_log(line)
        async with running(log.run):
            log.write("down", "AllTraffic", "i-1", "id", "one")
            await until(lambda: line.attempts >= 2)
            log.write("down", "AllTraffic", "i-1", "id", "two")
            line.is_cut = False
            await until(lambda: len(texts(backend, "down")) == 2)

    asyncio.run(run())
    assert texts(backend, "down") == ["one", "two"]
    assert len([record for record in caplog.records if record.name.startswith("endpoint.cloudwatch")]) == 1


def test_last_lines_are_sent_at_end(backend: Backend) -> None:
    async def run() -> None:
        log = a_log(backend)
        async with running(log.run):
            await asyncio.sleep(0)  # let `run` begin
            log.write("end", "AllTraffic", "i-1", "id", "last")

    asyncio.run(run())
    assert texts(backend, "end") == ["last"]


def test_oldest_unsent_lines_are_dropped(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        line = Line(backend, is_cut=True)
        log = a_log(line, max_waiting_bytes=1000)
        for number in range(100):
            log.write("much", "AllTraffic", "i-1", "id", f"{number:03}")
            if number == 50:
                await log.send_all()
        line.is_cut = False
        await log.send_all()

    asyncio.run(run())
    found = texts(backend, "much")
    assert 5 < len(found) < 20 and found == [f"{number:03}" for number in range(100 - len(found), 100)]
    assert f"oldest {100 - len(found)} lines" in caplog.records[-1].message


def test_lost_log_groups_are_made_again(backend: Backend) -> None:
    async def run() -> None:
        log = a_log(backend)
        for text in ("one", "two"):
            log.write("lost", "AllTraffic", "i-1", "id", text)
            await log.send_all()
            if text == "one":
                client = backend.client("logs")
                await asyncio.to_thread(client.delete_log_group, logGroupName="/aws/sagemaker/Endpoints/lost")

    asyncio.run(run())
    assert texts(backend, "lost") == ["two"]


def test_many_and_long_lines_are_batched(backend: Backend) -> None:
    async def run() -> None:
        log = a_log(backend)
        for number in range(10_001):
            log.write("many", "AllTraffic", "i-1", "id", str(number))
        for _ in range(5):
            log.write("long", "AllTraffic", "i-1", "id", "ö" * 200_000)
        await log.send_all()

    asyncio.run(run())
    assert texts(backend, "many") == [str(number) for number in range(10_001)]
    found = events(backend, "long")
    assert len(found) == 5 and all(262_000 < len(event["message"].encode()) <= 262_144 - 26 for event in found)


class Refuser:
    """A backend that refuses the log of one endpoint."""

    def __init__(self, backend: Backend, endpoint: str) -> None:
        self._client = backend.client("logs")
        self._endpoint = endpoint
        self.exceptions = self._client.exceptions

    def client(self, service: str) -> Refuser:
        return self

    def put_log_events(self, **call: Any) -> Any:
        if call["logGroupName"].endswith(self._endpoint):
            call["logStreamName"] = "not:allowed"
            call["logEvents"] = []
        return self._client.put_log_events(**call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def test_refused_lines_do_not_block_others(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        log = a_log(Refuser(backend, "refused"))
        log.write("refused", "AllTraffic", "i-1", "id", "one")
        log.write("taken", "AllTraffic", "i-1", "id", "two")
        await log.send_all()
        await log.send_all()

    asyncio.run(run())
    assert texts(backend, "taken") == ["two"]
    assert ["refuses 1 lines" in record.message for record in caplog.records] == [True]
