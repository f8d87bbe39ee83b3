from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from container.dialects.plain_text import HEADER as CUSTOM_ATTRIBUTES
from container.settings import Settings
from container.telemetry.json_logs import JSONFormatter
from container.telemetry.metrics import Metrics
from container.telemetry.progress import Progress, Snapshot
from container.telemetry.progress_writer import Write
from testing.container.emf_document import extract_metrics
from testing.server import Server, eventually, lasting


@dataclass(kw_only=True, eq=False)
class Working:
    """An invocation, as far as its progress is concerned."""

    id: str = "inv-1"
    job: str | None = "novel"
    job_id: str | None = "ab12"
    items: int = 10
    has_all_items: bool = True
    items_done: int = 0
    prompt_tokens: int = 50
    completion_tokens: int = 0
    done_tokens: int = 0
    resumed_tokens: int = 0
    max_completion_tokens: int | None = None
    deadline_left_s: float = 300.0

    def snapshot(self) -> Snapshot:
        return Snapshot(**dataclasses.asdict(self))


class Lines(logging.Handler):
    """Keeps the lines that reach the container's log."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JSONFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def of(self, action: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("action") == action]

    @property
    def last(self) -> dict[str, Any]:
        return self.of("progress")[-1]


@pytest.fixture
def log() -> Iterator[Lines]:
    """The log of a server whose LONGHAUL_LOG_LEVEL is WARNING."""
    root, progress, lines = logging.getLogger(), logging.getLogger("container.telemetry.progress"), Lines()
    root.addHandler(lines)
    before = root.level, progress.level
    root.setLevel(logging.WARNING)
    yield lines
    root.removeHandler(lines)
    root.setLevel(before[0])
    progress.setLevel(before[1])


class Reporting:
    """A started Progress on a clock of the test's own; its task never wakes."""

    def __init__(self, mode: Any = "log", write: Write | None = None) -> None:
        self.metrics = Metrics()
        self.now = 1000.0
        self.progress = Progress(
            mode,
            self.metrics,
            dimensions={"Model": "tiny"},
            write=write,
            interval_s=3600,
            metrics_interval_s=43200,
            clock=lambda: self.now,
        )

    async def __aenter__(self) -> Reporting:
        self.progress.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.progress.stop()

    def pass_interval(self) -> None:
        self.now += 3600
        self.progress.tick()


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test that is a coroutine on an event loop of its own."""

    @wraps(test)
    def run(*given: Any, **fixtures: Any) -> None:
        asyncio.run(test(*given, **fixtures))

    return run


# Lines


@on_a_loop
async def test_line_reports_an_invocations_progress(log: Lines) -> None:
    async with Reporting() as reporting:
        job = Working()
        reporting.progress.open(job.snapshot)
        job.completion_tokens, job.done_tokens, job.items_done = 7200, 3600, 2
        reporting.pass_interval()
    line = log.last
    assert (line["invocation_id"], line["job"], line["state"]) == ("inv-1", "novel", "running")
    assert (line["items"], line["items_done"]) == (10, 2)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (50, 7200)
    assert (line["tokens_per_s"], line["mean_tokens_per_s"], line["deadline_left_s"]) == (2.0, 2.0, 300.0)


@on_a_loop
async def test_line_has_metrics_without_job_dimension(log: Lines) -> None:
    async with Reporting() as reporting:
        job = Working(items_done=2)
        reporting.progress.open(job.snapshot)
        job.completion_tokens = job.done_tokens = 7200
        reporting.pass_interval()
    assert extract_metrics(log.last) == {
        "InvocationTokensPerSecond": 2.0,
        "InvocationDeadlineLeft": 300.0,
        "InvocationEstimatedLeft": 8 * 3600 / 2,
    }
    assert log.last["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["Model"]]


@on_a_loop
async def test_last_interval_has_its_own_rate(log: Lines) -> None:
    async with Reporting() as reporting:
        job = Working()
        reporting.progress.open(job.snapshot)
        for job.completion_tokens in (3600, 3600 * 4):
            reporting.pass_interval()
    assert (log.last["tokens_per_s"], log.last["mean_tokens_per_s"]) == (3.0, 2.0)


@on_a_loop
async def test_resumed_tokens_do_not_count_as_generated(log: Lines) -> None:
    async with Reporting() as reporting:
        job = Working()
        reporting.progress.open(job.snapshot)
        job.resumed_tokens, job.completion_tokens = 50_000, 53_600
        reporting.pass_interval()
    assert (log.last["completion_tokens"], log.last["mean_tokens_per_s"]) == (53_600, 1.0)


@on_a_loop
async def test_a_short_invocation_has_no_line(log: Lines) -> None:
    async with Reporting() as reporting:
        job = Working()
        reporting.now += 3599
        reporting.progress.open(job.snapshot)
        reporting.now += 1
        reporting.progress.tick()
        reporting.progress.close(job.snapshot)
    assert not log.of("progress")


@on_a_loop
async def test_reported_invocation_gets_last_line(log: Lines) -> None:
    async with Reporting() as reporting:
        job = Working()
        reporting.progress.open(job.snapshot)
        job.completion_tokens = 3600
        reporting.pass_interval()
        reporting.now += 1
        job.completion_tokens, job.items_done = 3601, 10
        reporting.progress.close(job.snapshot)
        reporting.pass_interval()
    assert [line["state"] for line in log.of("progress")] == ["running", "ended"]
    assert (log.last["items_done"], log.last["completion_tokens"]) == (10, 3601)
    assert (log.last["tokens_per_s"], log.last["estimated_left_s"]) == (1.0, None)


@on_a_loop
async def test_equal_invocations_are_told_apart(log: Lines) -> None:
    async with Reporting() as reporting:
        jobs = [Working(id="one"), Working(id="two")]
        for job in jobs:
            reporting.progress.open(job.snapshot)
        reporting.progress.close(jobs[0].snapshot)
        reporting.pass_interval()
    assert [line["invocation_id"] for line in log.of("progress")] == ["two"]


def test_progress_off_reports_nothing() -> None:
    assert Progress.of(Settings(), Metrics(), None) is None


class Broken(Working):
    def snapshot(self) -> Snapshot:
        raise RuntimeError("a mistake of ours")


@on_a_loop
async def test_failing_snapshot_spares_other_invocations(log: Lines) -> None:
    async with Reporting() as reporting:
        reporting.progress.open((broken := Broken(id="broken")).snapshot)
        reporting.progress.open(Working(id="well").snapshot)
        reporting.pass_interval()
        reporting.progress.close(broken.snapshot)
    assert log.of("progress_failed")
    assert [line["invocation_id"] for line in log.of("progress")] == ["well"]


@on_a_loop
async def test_progress_task_reports(log: Lines) -> None:
    seen = asyncio.Event()

    async def write(job_id: str, data: bytes) -> None:
        seen.set()

    progress = Progress("s3", Metrics(), dimensions={"Model": "tiny"}, write=write, interval_s=0.001)
    progress.open(Working().snapshot)
    progress.start()
    await asyncio.wait_for(seen.wait(), 60)
    await progress.stop()
    assert log.of("progress")


# The estimate


async def estimate(log: Lines, **job: Any) -> tuple[float | None, str | None]:
    """Return the estimate after an hour with one token a second, and what it is by."""
    async with Reporting() as reporting:
        reporting.progress.open((working := Working(**job)).snapshot)
        working.completion_tokens += 3600
        reporting.pass_interval()
    return log.last["estimated_left_s"], log.last["estimated_by"]


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        # Two are done, of 1000 tokens each; the running ones have 1600 of the 8000 that the others will need.
        ({"items_done": 2, "done_tokens": 2000}, (6400.0, "mean")),
        # The running one is already longer than the mean: it needs one token at least.
        ({"items": 3, "items_done": 2, "done_tokens": 200}, (1.0, "mean")),
        ({"items": 2, "items_done": 2, "done_tokens": 3600}, (0.0, "mean")),
        ({"max_completion_tokens": 10_000}, (6400.0, "bound")),
        ({"max_completion_tokens": None}, (None, None)),
        ({"has_all_items": False, "items_done": 2, "done_tokens": 2000}, (None, None)),
    ],
)
@on_a_loop
async def test_estimate_is_by_tokens_left(
    log: Lines, job: dict[str, Any], expected: tuple[float | None, str | None]
) -> None:
    assert await estimate(log, **job) == expected


@on_a_loop
async def test_no_estimate_while_nothing_is_generated(log: Lines) -> None:
    async with Reporting() as reporting:
        reporting.progress.open(Working(items_done=1, done_tokens=10).snapshot)
        reporting.pass_interval()
    assert (log.last["estimated_left_s"], log.last["estimated_by"]) == (None, None)
    assert "InvocationEstimatedLeft" not in extract_metrics(log.last)


@on_a_loop
async def test_estimate_forgets_old_speed(log: Lines) -> None:
    async with Reporting() as reporting:
        job = Working(max_completion_tokens=3_700_000)
        reporting.progress.open(job.snapshot)
        job.completion_tokens = 3_600_000
        reporting.pass_interval()
        for _ in range(6):
            job.completion_tokens += 3600
            reporting.pass_interval()
    assert log.last["estimated_left_s"] == 3_700_000 - job.completion_tokens


# The server


@on_a_loop
async def test_server_metrics_come_periodically_and_last(log: Lines) -> None:
    async with Reporting() as reporting:
        for _ in range(24):
            reporting.metrics.generation_tokens.inc(3600)
            reporting.pass_interval()
        assert len(log.of("metrics")) == 2
        reporting.metrics.generation_tokens.inc(5)
    metrics = [extract_metrics(line) for line in log.of("metrics")]
    assert [line["GenerationTokens"] for line in metrics] == [43200, 43200, 5]
    assert metrics[0]["GenerationTokensPerSecond"] == 1.0


# Objects


@on_a_loop
async def test_the_record_is_an_object_too(log: Lines) -> None:
    written: dict[str, dict[str, Any]] = {}

    async def write(job_id: str, data: bytes) -> None:
        written[job_id] = json.loads(data)

    async with Reporting("s3", write) as reporting:
        reporting.progress.open((job := Working()).snapshot)
        reporting.progress.open(Working(job_id=None).snapshot)
        job.completion_tokens = 3600
        reporting.pass_interval()
    assert list(written) == ["ab12"]
    fields = {name: value for name, value in written["ab12"].items() if name != "time"}
    assert fields.items() <= log.of("progress")[0].items() and "_aws" not in fields


@on_a_loop
async def test_log_alone_writes_no_object(log: Lines) -> None:
    async def write(job_id: str, data: bytes) -> None:
        pytest.fail("written")

    async with Reporting("log", write) as reporting:
        reporting.progress.open(Working().snapshot)
        reporting.pass_interval()
    assert log.of("progress")


@on_a_loop
async def test_slow_store_gets_only_newest_record(log: Lines) -> None:
    begun, may_end = asyncio.Semaphore(0), asyncio.Semaphore(0)
    tokens: list[int] = []

    async def write(job_id: str, data: bytes) -> None:
        tokens.append(json.loads(data)["completion_tokens"])
        begun.release()
        await may_end.acquire()

    async with Reporting("s3", write) as reporting:
        reporting.progress.open((job := Working()).snapshot)
        for job.completion_tokens in (1, 2, 3):
            reporting.pass_interval()
            if job.completion_tokens == 1:
                await begun.acquire()
        may_end.release()
        await begun.acquire()
        assert tokens == [1, 3]
        may_end.release()


@on_a_loop
async def test_failing_store_is_warned_of_once(log: Lines) -> None:
    tries = asyncio.Semaphore(0)

    async def write(job_id: str, data: bytes) -> None:
        tries.release()
        raise OSError("the disk is full")

    async with Reporting("s3", write) as reporting:
        reporting.progress.open(Working().snapshot)
        for _ in range(3):
            reporting.pass_interval()
            await tries.acquire()
    assert len(log.of("progress")) == 3
    (warning,) = log.of("progress_not_written")
    assert warning["level"] == "WARNING" and "OSError: the disk is full" in warning["message"]


@on_a_loop
async def test_last_object_is_written_before_stop(log: Lines) -> None:
    states: list[str] = []

    async def write(job_id: str, data: bytes) -> None:
        await asyncio.to_thread(states.append, json.loads(data)["state"])

    async with Reporting("s3", write) as reporting:
        reporting.progress.open((job := Working()).snapshot)
        reporting.pass_interval()
        reporting.progress.close(job.snapshot)
    assert states[-1] == "ended"


@on_a_loop
async def test_hanging_write_does_not_delay_stop(log: Lines) -> None:
    cancelled = asyncio.Event()

    async def write(job_id: str, data: bytes) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with Reporting("s3", write) as reporting:
        reporting.progress.open(Working().snapshot)
        reporting.pass_interval()
    await asyncio.wait_for(cancelled.wait(), 60)


# Settings


@pytest.mark.parametrize(
    ("progress", "uri", "warns"),
    [("s3", "/journal", True), ("s3", "s3://bucket/journal", False), ("log", "/journal", False)],
)
@on_a_loop
async def test_progress_in_s3_needs_the_journal_there(log: Lines, progress: str, uri: str, warns: bool) -> None:
    settings = Settings.from_env({"LONGHAUL_PROGRESS": progress, "LONGHAUL_CHECKPOINT_URI": uri})
    reporting = Progress.of(settings, Metrics(), None)
    assert reporting is not None
    reporting.start()
    await reporting.stop()
    assert bool(log.of("progress_local")) is warns


# End to end


def test_server_reports_progress_in_log_and_journal(start: Callable[..., Server], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    server = start(LONGHAUL_PROGRESS="s3", LONGHAUL_CHECKPOINT_URI=journal, LONGHAUL_SERVED_NAME="tiny")
    server.wait_until_ready()
    body = "".join(json.dumps(lasting(f"{number} is", 4 if number < 3 else 8000)) + "\n" for number in range(5))
    headers = {"content-type": "application/jsonlines", CUSTOM_ATTRIBUTES: "job=novel"}
    request = server.post_soon(content=body, headers=headers)
    [running, *_] = eventually(lambda: [line for line in actions(server, "progress") if line["items_done"] == 3])
    [place] = eventually(lambda: list(journal.glob("jobs/*/progress.json")))
    server.send(signal.SIGTERM)
    eventually(lambda: server.ping()[0] == 503)
    server.send(signal.SIGTERM)
    assert request.result().status_code == 503
    assert server.exit_status() == 0

    assert (running["job"], running["items"], running["items_done"], running["Model"]) == ("novel", 5, 3, "tiny")
    assert running["completion_tokens"] > 12 and running["estimated_by"] == "mean"
    assert extract_metrics(running)["InvocationTokensPerSecond"] > 0
    [*_, ended] = actions(server, "progress")
    written = json.loads(place.read_bytes())
    assert written["state"] == ended["state"] == "ended"
    assert written["completion_tokens"] == ended["completion_tokens"] and place.stat().st_mode & 0o777 == 0o600
    metrics = [extract_metrics(line) for line in actions(server, "metrics")]
    assert sum(line["GenerationTokens"] for line in metrics) >= ended["completion_tokens"]
    assert actions(server, "progress_local")


def actions(server: Server, action: str) -> list[dict[str, Any]]:
    return [line for line in server.log_lines() if line.get("action") == action]
