"""Progress of the open invocations: a record of each every few seconds, in the log and beside its journal."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from container.settings import Settings
from container.telemetry import emf
from container.telemetry.cloudwatch import ServerMetrics
from container.telemetry.emf import Metric
from container.telemetry.metrics import Metrics
from container.telemetry.progress_writer import ProgressWriter, Write

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
METRICS_INTERVAL_S = 60.0
_MARKS = 6
"""Marks that are kept: the time left is estimated by the rate over as many intervals."""
_LAST_WRITES_TIMEOUT_S = 1.0
"""Seconds that objects under way are given at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An open invocation at one moment."""

    id: str
    job: str | None
    """Name that the caller gave the job."""
    job_id: str | None
    """Id under which the record is written as an object; without one it isn't."""
    items: int
    """Items that are known so far."""
    has_all_items: bool
    """Whether `items` will not grow any more."""
    items_done: int
    prompt_tokens: int
    completion_tokens: int
    """Tokens of finished and running texts, resumed ones included."""
    done_tokens: int
    """Tokens of finished texts."""
    resumed_tokens: int
    """Tokens that came from the journal and were not generated now."""
    max_completion_tokens: int | None
    """Tokens that all items may generate at most, if known."""
    deadline_left_s: float

    def tokens_left(self) -> tuple[float | None, Literal["mean", "bound"] | None]:
        """Estimate the tokens still to be generated, and say by what."""
        if not self.has_all_items:
            return None, None
        if self.items_done:
            unfinished = self.items - self.items_done
            mean = self.done_tokens / self.items_done
            running = self.completion_tokens - self.done_tokens
            return max(unfinished * mean - running, unfinished, 0), "mean"
        if self.max_completion_tokens is not None:
            return max(self.max_completion_tokens - self.completion_tokens, 0), "bound"
        return None, None


TakeSnapshot = Callable[[], Snapshot]
"""Describes an open invocation. It is called on the event loop, so it must be quick."""


@dataclass(frozen=True, slots=True)
class _Mark:
    at: float
    tokens: int
    """Tokens generated since the invocation began."""


@dataclass(slots=True)
class _Tracked:
    """Owns the marks of an invocation: how far it was the last times."""

    snapshot: TakeSnapshot
    opened: _Mark
    marks: deque[_Mark]
    is_reported: bool = False


class Progress:
    """Owns the task that reports, and the invocations it reports on. Its failures never reach an invocation.

    Each open invocation gets a line every `INTERVAL_S`, once it is as old as that, and a last one at its end if it had
    one before. The server's metrics get a line every `METRICS_INTERVAL_S` and one at the end, unless nothing has
    happened. With `s3`, an invocation's record is also written as an object, the next over the last.

    The time to the end is an estimate: the tokens that are left by the rate of the last half minute. Once an item is
    done, every item is taken to be as long as the mean of those, and each unfinished one to need at least one token
    more (`estimated_by: mean`). As short ones are done first, it is too low in the beginning. Before, it is the most
    that the items may generate (`estimated_by: bound`), which is too high if texts end by themselves. While the items
    are not all known, or nothing is generated, there is no estimate.
    """

    def __init__(
        self,
        mode: Literal["log", "s3"],
        metrics: Metrics,
        *,
        dimensions: Mapping[str, str],
        write: Write | None = None,
        warning: str | None = None,
        interval_s: float = INTERVAL_S,
        metrics_interval_s: float = METRICS_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dimensions = dimensions
        self._warning = warning
        self._interval_s = interval_s
        self._metrics_interval_s = metrics_interval_s
        self._clock = clock
        self._server = ServerMetrics(metrics, clock)
        self._server_reported_at = clock()
        self._tracked: dict[TakeSnapshot, _Tracked] = {}
        self._writer = ProgressWriter(write) if mode == "s3" and write is not None else None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, settings: Settings, metrics: Metrics, write: Write | None) -> Progress | None:
        """Return the progress that the settings ask for, if any; `write` puts a job's object beside its journal."""
        if settings.progress is None:
            return None
        warning = None
        if settings.progress == "s3" and not settings.checkpoint_uri.startswith("s3://"):
            warning = (
                "LONGHAUL_PROGRESS is s3 and LONGHAUL_CHECKPOINT_URI is a directory: progress is written there, and "
                "is lost with the container"
            )
        return cls(settings.progress, metrics, dimensions={"Model": settings.name}, write=write, warning=warning)

    def start(self) -> None:
        logger.setLevel(logging.INFO)  # the operator asked for these lines, even if LONGHAUL_LOG_LEVEL is higher
        if self._warning is not None:
            logger.warning(self._warning, extra={"action": "progress_local"})
        self._task = asyncio.create_task(self._run(), name="progress")

    async def stop(self) -> None:
        """Report on the server a last time. Takes no longer than the last objects are given."""
        if self._task is None:
            return
        self._task.cancel()
        self._task = None
        self._report_server()
        if self._writer is not None:
            await self._writer.stop(_LAST_WRITES_TIMEOUT_S)

    def open(self, snapshot: TakeSnapshot) -> None:
        """Report on an invocation from now on, until `close` is called with the same `snapshot`."""
        opened = _Mark(self._clock(), 0)
        self._tracked[snapshot] = _Tracked(snapshot, opened, deque([opened], maxlen=_MARKS))

    def close(self, snapshot: TakeSnapshot) -> None:
        tracked = self._tracked.pop(snapshot, None)
        if tracked is not None and tracked.is_reported:
            self._report(tracked, is_running=False)

    def tick(self) -> None:
        """Report everything that is due."""
        now = self._clock()
        for tracked in list(self._tracked.values()):
            if now - tracked.opened.at >= self._interval_s:
                self._report(tracked, is_running=True)
        if now - self._server_reported_at >= self._metrics_interval_s - self._interval_s / 2:
            self._server_reported_at = now
            self._report_server()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self.tick()

    def _report(self, tracked: _Tracked, *, is_running: bool) -> None:
        try:
            snapshot = tracked.snapshot()
            record = self._record(snapshot, tracked, is_running)
        except Exception:
            logger.exception("the progress of an invocation can't be reported", extra={"action": "progress_failed"})
            return
        tracked.is_reported = True
        metrics = (
            Metric("InvocationTokensPerSecond", record["tokens_per_s"], "Count/Second"),
            Metric("InvocationDeadlineLeft", record["deadline_left_s"], "Seconds"),
            Metric("InvocationEstimatedLeft", record["estimated_left_s"], "Seconds"),
        )
        logger.info("progress", extra=record | emf.members(metrics, self._dimensions, at=time.time()))
        if self._writer is not None and snapshot.job_id is not None:
            utc = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._writer.put(snapshot.job_id, json.dumps({"time": utc} | record).encode())

    def _report_server(self) -> None:
        if metrics := self._server.collect():
            members = emf.members(metrics, self._dimensions, at=time.time())
            logger.info("server metrics", extra={"action": "metrics"} | members)

    def _record(self, snapshot: Snapshot, tracked: _Tracked, is_running: bool) -> dict[str, Any]:
        now = _Mark(self._clock(), snapshot.completion_tokens - snapshot.resumed_tokens)
        # At the end of an invocation the last mark may be a moment old: it is too close to measure a rate.
        recent = (mark for mark in reversed(tracked.marks) if now.at - mark.at >= self._interval_s / 2)
        last = next(recent, tracked.opened)
        tokens_left, estimated_by = snapshot.tokens_left() if is_running else (None, None)
        rate = _rate(tracked.marks[0], now)
        tracked.marks.append(now)
        estimated_left_s = None if tokens_left is None or not rate else tokens_left / rate
        return {
            "action": "progress",
            "invocation_id": snapshot.id,
            "job": snapshot.job,
            "state": "running" if is_running else "ended",
            "items": snapshot.items,
            "items_done": snapshot.items_done,
            "prompt_tokens": snapshot.prompt_tokens,
            "completion_tokens": snapshot.completion_tokens,
            "resumed_tokens": snapshot.resumed_tokens,
            "tokens_per_s": _rounded(_rate(last, now)),
            "mean_tokens_per_s": _rounded(_rate(tracked.opened, now)),
            "estimated_left_s": _rounded(estimated_left_s),
            "estimated_by": None if estimated_left_s is None else estimated_by,
            "deadline_left_s": _rounded(max(snapshot.deadline_left_s, 0.0)),
        }


def _rate(since: _Mark, now: _Mark) -> float | None:
    seconds = now.at - since.at
    # Tokens of a failed sequence are no longer counted, so that the number can fall.
    return max(now.tokens - since.tokens, 0) / seconds if seconds > 0 else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
