"""How far the open invocations are: a record of each every few seconds, in the log and beside its journal."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from container.settings import Settings
from container.telemetry import emf
from container.telemetry.cloudwatch import ServerMetrics
from container.telemetry.emf import Metric
from container.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

EVERY_S = 5.0
METRICS_EVERY_S = 60.0
_MARKS = 6
"""The estimate is by the rate over the last six intervals."""
_LAST_WRITES_S = 1.0
"""At the end, for objects that are on their way."""

Write = Callable[[str, bytes], Awaitable[None]]
"""Of a job's id and its object. May raise anything."""
State = Literal["running", "ended"]


class Work(Protocol):
    """What is asked of an open invocation, on the event loop: nothing of it may take long."""

    @property
    def id(self) -> str: ...
    @property
    def job(self) -> str | None:
        """The name that its caller gave it."""

    @property
    def job_id(self) -> str | None:
        """Under which its object is written. Without one there is none."""

    @property
    def items(self) -> int:
        """As far as they are known."""

    @property
    def has_all_items(self) -> bool:
        """Whether `items` will not grow any more."""

    @property
    def items_done(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int:
        """Of all that is done and all that runs, resumed ones, too."""

    @property
    def done_tokens(self) -> int:
        """Those of the items that are done."""

    @property
    def resumed_tokens(self) -> int:
        """Those that came from the journal: nobody generated them now."""

    @property
    def most_completion_tokens(self) -> int | None:
        """The sum of what all items may generate at most, where it is known."""

    @property
    def deadline_left_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class _Mark:
    at: float
    tokens: int
    """Generated since the invocation began."""


@dataclass(slots=True)
class _Tracked:
    """Owns where an invocation was at the last times it was looked at."""

    work: Work
    opened: _Mark
    marks: deque[_Mark] = field(default_factory=lambda: deque(maxlen=_MARKS))
    recorded: bool = False

    def mark(self, now: float) -> _Mark:
        return _Mark(now, self.work.completion_tokens - self.work.resumed_tokens)


class Progress:
    """Owns the task that reports, and what it reports on. Nothing here can hurt an invocation.

    Each open invocation gets a line every `EVERY_S`, once it is as old as that, and where it had one, a last one at its
    end. The server's metrics get a line every `METRICS_EVERY_S` and one at the end, unless nothing has happened. With
    `s3`, an invocation's record is also written as an object, the next over the last.

    The time to the end is an estimate: the tokens that are left by the rate of the last half minute. Once an item is
    done, every item is taken to be as long as the mean of those, and each unfinished one to need at least one token
    more (`estimated_by: mean`). As short ones are done first, it is too low in the beginning. Before, it is the most
    that the items may generate (`estimated_by: bound`), which is too high where texts end by themselves. While the
    items are not all known, or nothing is generated, there is none.
    """

    def __init__(
        self,
        mode: Literal["log", "s3"] | None,
        metrics: Metrics,
        *,
        dimensions: Mapping[str, str],
        write: Write | None = None,
        warning: str | None = None,
        every_s: float = EVERY_S,
        metrics_every_s: float = METRICS_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mode = mode
        self._dimensions = dimensions
        self._warning = warning
        self._every_s = every_s
        self._metrics_every_s = metrics_every_s
        self._clock = clock
        self._server = ServerMetrics(metrics, clock)
        self._server_told_at = clock()
        self._tracked: dict[int, _Tracked] = {}
        self._objects = _Objects(write) if mode == "s3" and write is not None else None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, settings: Settings, metrics: Metrics, write: Write | None) -> Progress:
        """`write` puts a job's object beside its journal."""
        warning = None
        if settings.progress == "s3" and not settings.checkpoint_uri.startswith("s3://"):
            warning = (
                "LONGHAUL_PROGRESS is s3 and LONGHAUL_CHECKPOINT_URI is a directory: progress is written there, and "
                "is lost with the container"
            )
        return cls(settings.progress, metrics, dimensions={"Model": settings.name}, write=write, warning=warning)

    def start(self) -> None:
        if self._mode is None:
            return
        logger.setLevel(logging.INFO)  # asked for by name, whatever LONGHAUL_LOG_LEVEL says of the rest
        if self._warning is not None:
            logger.warning(self._warning, extra={"action": "progress_local"})
        self._task = asyncio.create_task(self._run(), name="progress")

    async def stop(self) -> None:
        """Takes no longer than the last objects are given."""
        if self._task is None:
            return
        self._task.cancel()
        self._task = None
        self._tell_of_server()
        if self._objects is not None:
            await self._objects.stop(_LAST_WRITES_S)

    def open(self, work: Work) -> None:
        now = self._clock()
        tracked = _Tracked(work, _Mark(now, 0))
        tracked.marks.append(tracked.opened)
        self._tracked[id(work)] = tracked

    def close(self, work: Work) -> None:
        tracked = self._tracked.pop(id(work), None)
        if tracked is not None and tracked.recorded:
            self._tell_of(tracked, "ended")

    def tick(self) -> None:
        """Report what is due."""
        now = self._clock()
        for tracked in list(self._tracked.values()):
            if now - tracked.opened.at >= self._every_s:
                self._tell_of(tracked, "running")
        if now - self._server_told_at >= self._metrics_every_s - self._every_s / 2:
            self._server_told_at = now
            self._tell_of_server()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            self.tick()

    def _tell_of(self, tracked: _Tracked, state: State) -> None:
        try:
            record = self._record(tracked, state)
        except Exception:
            logger.exception("the progress of an invocation can't be told", extra={"action": "progress_failed"})
            return
        tracked.recorded = True
        what = (
            Metric("InvocationTokensPerSecond", record["tokens_per_s"], "Count/Second"),
            Metric("InvocationDeadlineLeft", record["deadline_left_s"], "Seconds"),
            Metric("InvocationEstimatedLeft", record["estimated_left_s"], "Seconds"),
        )
        self._log("progress", record | emf.members(what, self._dimensions, at=time.time()))
        job_id = tracked.work.job_id
        if self._objects is not None and job_id is not None:
            self._objects.put(job_id, json.dumps({"time": _utc_now()} | record).encode())

    def _tell_of_server(self) -> None:
        if taken := self._server.take():
            self._log("server metrics", {"action": "metrics"} | emf.members(taken, self._dimensions, at=time.time()))

    def _log(self, message: str, fields: Mapping[str, object]) -> None:
        logger.info(message, extra=fields)

    def _record(self, tracked: _Tracked, state: State) -> dict[str, Any]:
        work, marks, now = tracked.work, tracked.marks, tracked.mark(self._clock())
        # At the end of an invocation the last mark may be a moment old: no rate can be told from it.
        last = next((mark for mark in reversed(marks) if now.at - mark.at >= self._every_s / 2), tracked.opened)
        left, estimated_by = _tokens_left(work) if state == "running" else (None, None)
        rate = _rate(marks[0], now)
        marks.append(now)
        estimated_left_s = None if left is None or not rate else left / rate
        return {
            "action": "progress",
            "invocation_id": work.id,
            "job": work.job,
            "state": state,
            "items": work.items,
            "items_done": work.items_done,
            "prompt_tokens": work.prompt_tokens,
            "completion_tokens": work.completion_tokens,
            "resumed_tokens": work.resumed_tokens,
            "tokens_per_s": _rounded(_rate(last, now)),
            "mean_tokens_per_s": _rounded(_rate(tracked.opened, now)),
            "estimated_left_s": _rounded(estimated_left_s),
            "estimated_by": None if estimated_left_s is None else estimated_by,
            "deadline_left_s": _rounded(max(work.deadline_left_s, 0.0)),
        }


class _Objects:
    """Owns the writes of jobs' objects: of each job one at a time, and of what came meanwhile the last."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._pending: dict[str, bytes] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._has_warned = False

    def put(self, job_id: str, data: bytes) -> None:
        self._pending[job_id] = data
        if job_id not in self._writing:
            self._writing[job_id] = asyncio.create_task(self._write_out(job_id), name="progress object")

    async def stop(self, within_s: float) -> None:
        if tasks := list(self._writing.values()):
            await asyncio.wait(tasks, timeout=within_s)
            for task in tasks:
                task.cancel()

    async def _write_out(self, job_id: str) -> None:
        try:
            while (data := self._pending.pop(job_id, None)) is not None:
                await self._write_once(job_id, data)
        finally:
            del self._writing[job_id]

    async def _write_once(self, job_id: str, data: bytes) -> None:
        try:
            await self._write(job_id, data)
        except Exception as error:
            if not self._has_warned:
                message = "progress can't be written beside the journal, and nothing more is said of it: %s: %s"
                logger.warning(message, type(error).__name__, error, extra={"action": "progress_not_written"})
            self._has_warned = True


def _tokens_left(work: Work) -> tuple[float | None, Literal["mean", "bound"] | None]:
    if not work.has_all_items:
        return None, None
    if work.items_done:
        unfinished = work.items - work.items_done
        mean = work.done_tokens / work.items_done
        running = work.completion_tokens - work.done_tokens
        return max(unfinished * mean - running, unfinished, 0), "mean"
    if work.most_completion_tokens is not None:
        return max(work.most_completion_tokens - work.completion_tokens, 0), "bound"
    return None, None


def _rate(since: _Mark, now: _Mark) -> float | None:
    seconds = now.at - since.at
    # What a failed sequence had is no longer counted.
    return max(now.tokens - since.tokens, 0) / seconds if seconds > 0 else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
