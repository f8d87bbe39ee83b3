from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from endpoint.backend.backend import Backend
from endpoint.cloudwatch.metrics import COUNTERS, GAUGES, NAMESPACE, PERIOD_S, Metrics, Record
from endpoint.settings import Settings
from endpoint.state import catalog, queue
from endpoint.state.catalog import Catalog
from endpoint.state.database import Database
from endpoint.state.queue import Queue
from testing.endpoint.cut_line import ACCOUNT, REGION, Line, a_backend, running, until
from testing.endpoint.jobs import new_job

PERIOD = 0.05


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with a_backend(tmp_path_factory.mktemp("backend")) as backend:
        yield backend


class World:
    def __init__(self, directory: Path, backend: Any, record: Record = lambda namespace, data: None) -> None:
        self.database = Database(directory / "db", catalog.SCHEMA, queue.SCHEMA)
        self.catalog = Catalog(self.database)
        self.queue = Queue(self.database)
        self.instances: Counter[str] = Counter()
        settings = Settings(data_dir=directory, region=REGION, account=ACCOUNT, time_scale=PERIOD_S / PERIOD)
        self.metrics = Metrics(settings, backend, self.catalog, self.queue, self.instances.__getitem__, record)

    async def create(self, name: str, *, status: str = "InService", is_async: bool = True, instances: int = 0) -> None:
        variant = {"VariantName": "v", "ModelName": name}
        config: dict[str, Any] = {"ProductionVariants": [variant]}
        if is_async:
            config["AsyncInferenceConfig"] = {"OutputConfig": {}}
        state: dict[str, Any] = {
            "status": status,
            "failure_reason": None,
            "config_name": name,
            "target_config_name": None,
        }
        state |= {"desired": 1, "current": 1}
        await self.catalog.create("model", name, f"m:{name}", {"PrimaryContainer": {}}, {}, {})
        await self.catalog.create("endpoint-config", name, f"c:{name}", config, {}, {})
        await self.catalog.create("endpoint", name, f"e:{name}", {}, {}, state)
        self.instances[name] = instances

    async def accept(self, endpoint: str) -> None:
        await self.queue.accept(new_job(endpoint=endpoint))


@contextlib.asynccontextmanager
async def a_world(directory: Path, backend: Any, record: Record = lambda namespace, data: None) -> AsyncIterator[World]:
    world = World(directory, backend, record)
    try:
        yield world
    finally:
        world.database.close()


class Reader:
    """Reads the metrics from CloudWatch."""

    def __init__(self, backend: Backend) -> None:
        self._client = backend.client("cloudwatch")

    def statistics(self, endpoint: str, name: str, variant: str | None = "v") -> dict[str, Any]:
        """Return the statistics of the last hour, or an empty dictionary if there are none."""
        now = datetime.now(UTC)
        points = self._client.get_metric_statistics(
            Namespace=NAMESPACE,
            MetricName=name,
            Dimensions=dimensions(endpoint, variant),
            StartTime=now - timedelta(minutes=50),
            EndTime=now + timedelta(minutes=10),
            Period=7200,
            Statistics=["SampleCount", "Sum", "Minimum", "Maximum"],
        )["Datapoints"]
        assert len({point["Unit"] for point in points}) <= 1
        if not points:
            return {}
        return {
            "SampleCount": sum(point["SampleCount"] for point in points),
            "Sum": sum(point["Sum"] for point in points),
            "Minimum": min(point["Minimum"] for point in points),
            "Maximum": max(point["Maximum"] for point in points),
            "Unit": points[0]["Unit"],
        }

    def published(self, endpoint: str) -> dict[str, list[str]]:
        """Return the names of the metrics, each with the names of its dimensions."""
        pages = self._client.get_paginator("list_metrics").paginate(
            Namespace=NAMESPACE, Dimensions=[{"Name": "EndpointName", "Value": endpoint}]
        )
        metrics = [metric for page in pages for metric in page["Metrics"]]
        return {metric["MetricName"]: sorted(pair["Name"] for pair in metric["Dimensions"]) for metric in metrics}


def dimensions(endpoint: str, variant: str | None) -> list[dict[str, str]]:
    found = [{"Name": "EndpointName", "Value": endpoint}]
    return found + ([{"Name": "VariantName", "Value": variant}] if variant else [])


def test_counts_are_summed_with_their_units(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        async with a_world(tmp_path, backend) as world:
            for name in COUNTERS:
                world.metrics.count("sums", "v", name, 2.0)
                world.metrics.count("sums", "v", name, 5.0)
                world.metrics.count("sums", "v", name, 2.0)
            await world.metrics.flush()
            await world.metrics.flush()  # has nothing more to send

    asyncio.run(run())
    read = Reader(backend)
    assert read.published("sums") == {name: ["EndpointName", "VariantName"] for name in COUNTERS}
    for name, unit in COUNTERS.items():
        wanted = {"SampleCount": 3, "Sum": 9, "Minimum": 2, "Maximum": 5, "Unit": unit}
        assert read.statistics("sums", name) == wanted, name


def test_unknown_metric_is_refused(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        async with a_world(tmp_path, backend) as world:
            for name in ("Invocations", "OverheadLatency", "ApproximateBacklogSize", "InvocationsProcesssed"):
                with pytest.raises(ValueError, match=name):
                    world.metrics.count("e", "v", name)

    asyncio.run(run())


def test_values_beyond_datum_limit_keep_statistics(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        async with a_world(tmp_path, backend) as world:
            for value in range(1, 1001):
                world.metrics.count("many", "v", "ModelLatency", value)
            await world.metrics.flush()

    asyncio.run(run())
    wanted = {"SampleCount": 1000, "Sum": 500_500, "Minimum": 1, "Maximum": 1000, "Unit": "Microseconds"}
    assert Reader(backend).statistics("many", "ModelLatency") == wanted


def test_percentiles_are_there(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        async with a_world(tmp_path, backend) as world:
            for value in range(1, 101):
                world.metrics.count("percentiles", "v", "TotalProcessingTime", value)
            await world.metrics.flush()

    asyncio.run(run())
    stat = {
        "Metric": {
            "Namespace": NAMESPACE,
            "MetricName": "TotalProcessingTime",
            "Dimensions": dimensions("percentiles", "v"),
        },
        "Period": 7200,
        "Stat": "p90",
    }
    now = datetime.now(UTC)
    (result,) = backend.client("cloudwatch").get_metric_data(
        MetricDataQueries=[{"Id": "q", "MetricStat": stat}],
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(hours=1),
    )["MetricDataResults"]
    assert result["Values"] == [pytest.approx(90, abs=1)]


def test_a_backlog_is_published_each_period(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        read = Reader(backend)
        async with a_world(tmp_path, backend) as world:
            await world.create("busy", instances=2)
            for _ in range(3):
                await world.accept("busy")
            assert await world.queue.lease("busy")
            accepted = time.time()
            async with running(world.metrics.run):
                capacity = ("busy", "HasBacklogWithoutCapacity", None)
                await until(lambda: read.statistics(*capacity).get("SampleCount", 0) > 2)
            size = read.statistics("busy", "ApproximateBacklogSize", None)
            assert size["Minimum"] == size["Maximum"] == 3 and size["Unit"] == "Count"
            per_instance = read.statistics("busy", "ApproximateBacklogSizePerInstance", None)
            assert per_instance["Minimum"] == per_instance["Maximum"] == 1.5
            age = read.statistics("busy", "ApproximateAgeOfOldestRequest", None)
            assert 0 <= age["Maximum"] <= time.time() - accepted + 5 and age["Unit"] == "Seconds"
            assert read.statistics("busy", "HasBacklogWithoutCapacity", None)["Maximum"] == 0
            assert read.published("busy") == {name: ["EndpointName"] for name in GAUGES}

    asyncio.run(run())


def test_backlog_without_instance_reports_missing_capacity(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        read = Reader(backend)
        async with a_world(tmp_path, backend) as world:
            await world.create("asleep")
            await world.accept("asleep")
            await world.accept("asleep")
            async with running(world.metrics.run):
                await until(lambda: read.statistics("asleep", "HasBacklogWithoutCapacity", None))
            assert read.statistics("asleep", "HasBacklogWithoutCapacity", None)["Minimum"] == 1
            assert read.statistics("asleep", "ApproximateBacklogSizePerInstance", None)["Minimum"] == 2

    asyncio.run(run())


def test_idle_endpoint_without_instance_omits_capacity_gauge(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        read = Reader(backend)
        async with a_world(tmp_path, backend) as world:
            await world.create("idle")
            await world.create("realtime", is_async=False)
            await world.create("creating", status="Creating")
            async with running(world.metrics.run):
                await until(lambda: read.statistics("idle", "ApproximateBacklogSize", None))
            assert sorted(read.published("idle")) == sorted(set(GAUGES) - {"HasBacklogWithoutCapacity"})
            assert read.statistics("idle", "ApproximateAgeOfOldestRequest", None)["Maximum"] == 0
            assert read.published("realtime") == {} == read.published("creating")

    asyncio.run(run())


def test_counts_wait_for_dead_backend_gauges_do_not(
    tmp_path: Path, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        read, line = Reader(backend), Line(backend, is_cut=True)
        async with a_world(tmp_path, line) as world:
            await world.create("down", instances=1)
            async with running(world.metrics.run):
                for number in range(400):
                    world.metrics.count("down", "v", "InvocationsProcessed")
                    world.metrics.count("down", "v", "ModelLatency", number)
                await until(lambda: line.attempts >= 3)
                world.metrics.count("down", "v", "InvocationsProcessed")
                line.is_cut = False
                await until(lambda: read.statistics("down", "InvocationsProcessed"))
            await world.metrics.flush()
            assert read.statistics("down", "InvocationsProcessed")["Sum"] == 401
            latency = read.statistics("down", "ModelLatency")
            assert (latency["SampleCount"], latency["Sum"]) == (400, sum(range(400)))

    asyncio.run(run())
    assert len([record for record in caplog.records if record.name.startswith("endpoint.cloudwatch")]) == 1


def test_last_counts_are_sent_at_end(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        async with a_world(tmp_path, backend) as world:
            async with running(world.metrics.run):
                world.metrics.count("last", "v", "ExpiredRequests")
            await world.metrics.flush()

    asyncio.run(run())
    assert Reader(backend).statistics("last", "ExpiredRequests")["Sum"] == 1


class Recorder:
    """Takes PutMetricData, and keeps its size."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def client(self, service: str) -> Recorder:
        return self

    def put_metric_data(self, Namespace: str, MetricData: list[dict[str, Any]]) -> None:
        assert all(len(datum.get("Values", [])) <= 150 for datum in MetricData)
        self.calls.append((len(MetricData), len(json.dumps(MetricData))))


def test_batches_keep_to_the_limits(tmp_path: Path) -> None:
    async def run() -> None:
        recorder = Recorder()
        async with a_world(tmp_path, recorder) as world:
            for number in range(1200):
                world.metrics.count(f"endpoint-{number}", "v", "InvocationsProcessed")
                for value in range(160 if number < 700 else 1):
                    world.metrics.count(f"endpoint-{number}", "v", "ModelLatency", value + 0.123456789)
            await world.metrics.flush()
        assert sum(data for data, _ in recorder.calls) == 1200 + 1200 + 700
        assert max(data for data, _ in recorder.calls) <= 1000 and max(size for _, size in recorder.calls) <= 1_000_000

    asyncio.run(run())


def test_alarms_get_all_data_once(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        recorded: list[tuple[str, float]] = []

        def record(namespace: str, data: Sequence[dict[str, Any]]) -> None:
            assert namespace == NAMESPACE and all(time.time() - datum["Timestamp"] < 60 for datum in data)
            recorded.extend((datum["MetricName"], datum["Value"]) for datum in data)

        line = Line(backend, is_cut=True)
        async with a_world(tmp_path, line, record) as world:
            await world.create("told", instances=2)
            await world.accept("told")
            async with running(world.metrics.run):
                world.metrics.count("told", "v", "ModelLatency", 7)
                world.metrics.count("told", "v", "ModelLatency", 9)
                await until(lambda: recorded.count(("ApproximateBacklogSizePerInstance", 0.5)) > 2)
                line.is_cut = False
                await until(lambda: Reader(backend).statistics("told", "ModelLatency"))
        assert [value for name, value in recorded if name == "ModelLatency"] == [7, 9]
        assert {name for name, _ in recorded} == {"ModelLatency", *GAUGES}

    asyncio.run(run())


class Stuck:
    """Takes PutMetricData, and answers none before the end."""

    def __init__(self) -> None:
        self.calls = 0
        self.end = threading.Event()

    def client(self, service: str) -> Stuck:
        return self

    def put_metric_data(self, **parameters: Any) -> None:
        self.calls += 1
        self.end.wait(60)


def _times(times: list[float], namespace: str, data: Sequence[dict[str, Any]]) -> None:
    times.extend({datum["Timestamp"] for datum in data})


def test_stuck_backend_delays_no_gauge(tmp_path: Path) -> None:
    async def run() -> None:
        times: list[float] = []
        stuck = Stuck()
        async with a_world(
            tmp_path, stuck, lambda _, data: times.extend({datum["Timestamp"] for datum in data})
        ) as world:
            await world.create("stuck", instances=1)
            async with running(world.metrics.run):
                await until(lambda: len(times) > 5)
                assert stuck.calls == 1
                stuck.end.set()
                await until(lambda: stuck.calls > 1)

    asyncio.run(run())
