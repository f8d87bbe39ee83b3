"""What asynchronous endpoints publish to CloudWatch, in the namespace AWS/SageMaker: names, units, dimensions, values.

Times in them are seconds on the wall however quick the platform's clock; only how often they are sent follows it. What
is counted while the backend is down is sent when it is back, as of then. An answer that is lost on its way back can
make a batch count twice, as with any client of CloudWatch.

With no instance, ApproximateBacklogSizePerInstance is the backlog itself, so that a target-tracking policy alone leaves
zero when the backlog is over its target, and HasBacklogWithoutCapacity has data only while there is a backlog.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from endpoint.backend.clients import Clients, is_refusal
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog, Endpoint, NotFound
from endpoint.state.queue import Queue

NAMESPACE = "AWS/SageMaker"
PERIOD_S = 60.0

GAUGES = {
    "ApproximateBacklogSize": "Count",
    "ApproximateBacklogSizePerInstance": "Count",
    "ApproximateAgeOfOldestRequest": "Seconds",
    "HasBacklogWithoutCapacity": "Count",
}
"""Units; the dimension is EndpointName."""

COUNTED = {
    "InvocationsProcessed": "Count",
    "InvocationFailures": "Count",
    "ExpiredRequests": "Count",
    "RequestDownloadFailures": "Count",
    "ResponseUploadFailures": "Count",
    "NotificationFailures": "Count",
    "RequestDownloadLatency": "Microseconds",
    "ResponseUploadLatency": "Microseconds",
    "TimeInBacklog": "Milliseconds",
    "TotalProcessingTime": "Milliseconds",
    "Invocation4XXErrors": "None",
    "Invocation5XXErrors": "None",
    "ModelLatency": "Microseconds",
}
"""Units; the dimensions are EndpointName and VariantName."""

# PutMetricData: at most 1,000 data and 1 MB, with 150 values each.
_MOST_DATA = 1000
_MOST_BYTES = 900_000
_MOST_VALUES = 150

_LOG = logging.getLogger(__name__)


class Fleet(Protocol):
    def healthy(self, endpoint: str) -> Sequence[Any]: ...


@dataclass(slots=True)
class Tally:
    """Values of one metric since it was sent last: the first 150 as they are, of others what a statistic set says."""

    values: dict[float, float] = field(default_factory=dict)
    """How often each."""
    rest: dict[str, float] = field(default_factory=dict)

    def add(self, value: float, times: float = 1.0) -> None:
        if value in self.values or len(self.values) < _MOST_VALUES:
            self.values[value] = self.values.get(value, 0.0) + times
        else:
            self._add_rest({"SampleCount": times, "Sum": value * times, "Minimum": value, "Maximum": value})

    def merge(self, other: Tally) -> None:
        for value, times in other.values.items():
            self.add(value, times)
        if other.rest:
            self._add_rest(other.rest)

    def _add_rest(self, more: dict[str, float]) -> None:
        rest = self.rest or more
        if self.rest:
            rest = {
                "SampleCount": rest["SampleCount"] + more["SampleCount"],
                "Sum": rest["Sum"] + more["Sum"],
                "Minimum": min(rest["Minimum"], more["Minimum"]),
                "Maximum": max(rest["Maximum"], more["Maximum"]),
            }
        self.rest = rest


_Key = tuple[str, str, str]  # endpoint, variant, name


@dataclass(frozen=True, slots=True)
class _Entry:
    data: list[dict[str, Any]]
    counted: tuple[_Key, Tally] | None = None
    """What to keep if it isn't sent."""


class Metrics:
    """Owns what was counted and isn't sent."""

    def __init__(self, settings: Settings, backend: Clients, catalog: Catalog, queue: Queue, fleet: Fleet) -> None:
        self._settings = settings
        self._backend = backend
        self._catalog = catalog
        self._queue = queue
        self._fleet = fleet
        self._tallies: dict[_Key, Tally] = {}
        self._one_round = asyncio.Lock()
        self._is_failing = False

    def count(self, endpoint: str, variant: str, name: str, value: float = 1.0) -> None:
        """Raises ValueError for a name that isn't in COUNTED."""
        if name not in COUNTED:
            raise ValueError(f"{name} is no metric of an invocation")
        self._tallies.setdefault((endpoint, variant, name), Tally()).add(float(value))

    async def run(self) -> None:
        """Counts and gauges at the end of each period, until cancelled; never raises."""
        while True:
            await asyncio.sleep(self._settings.real_s(PERIOD_S))
            # What is being sent when it is cancelled is sent to its end.
            await asyncio.shield(asyncio.create_task(self._end_period()))

    async def flush(self) -> None:
        """The counts, one attempt. Gauges are their period's alone."""
        await self._send([])

    async def _end_period(self) -> None:
        try:
            gauges = [gauge async for gauge in self._gauges(time.time())]
        except Exception:
            _LOG.exception("The backlogs could not be read")
            gauges = []
        try:
            await self._send(gauges)
        except Exception:
            _LOG.exception("The metrics could not be sent")

    async def _gauges(self, now: float) -> AsyncIterator[dict[str, Any]]:
        for endpoint in await self._catalog.endpoints():
            if not await self._is_async(endpoint):
                continue
            backlog = await self._queue.backlog(endpoint.name)
            instances = len(self._fleet.healthy(endpoint.name))
            values = {
                "ApproximateBacklogSize": backlog.size,
                "ApproximateBacklogSizePerInstance": backlog.size / max(instances, 1),
                "ApproximateAgeOfOldestRequest": max(now - (backlog.oldest_at or now), 0.0),
            }
            if backlog.size or instances:
                values["HasBacklogWithoutCapacity"] = int(instances == 0)
            for name, value in values.items():
                yield _datum(name, GAUGES[name], now, {"EndpointName": endpoint.name}) | {"Value": float(value)}

    async def _is_async(self, endpoint: Endpoint) -> bool:
        """And takes requests."""
        if endpoint.status in ("Creating", "Failed", "Deleting"):
            return False
        try:
            deployment = await self._catalog.deployment(endpoint, endpoint.config_name)
        except NotFound:
            return False
        return bool(deployment.config.get("AsyncInferenceConfig"))

    async def _send(self, gauges: list[dict[str, Any]]) -> None:
        async with self._one_round:
            tallies, self._tallies = self._tallies, {}
            entries = [_Entry([gauge]) for gauge in gauges]
            entries += [_entry(key, tally, time.time()) for key, tally in tallies.items()]
            is_down = False
            for batch in _batches(entries):
                if is_down or not await self._put(batch):
                    is_down = True
                    self._keep(batch)

    async def _put(self, batch: list[_Entry]) -> bool:
        """Whether it is over with: taken, or refused for good."""
        data = [datum for entry in batch for datum in entry.data]
        try:
            await asyncio.to_thread(self._put_data, data)
        except Exception as error:
            if is_refusal(error):
                _LOG.warning("CloudWatch refuses %d data: %s", len(data), error)
                return True
            if not self._is_failing:
                is_known = isinstance(error, BotoCoreError | ClientError)
                _LOG.warning("CloudWatch does not take metrics; counts wait: %s", error, exc_info=not is_known)
            self._is_failing = True
            return False
        self._is_failing = False
        return True

    def _put_data(self, data: list[dict[str, Any]]) -> None:
        self._backend.client("cloudwatch").put_metric_data(Namespace=NAMESPACE, MetricData=data)

    def _keep(self, batch: list[_Entry]) -> None:
        for entry in batch:
            if entry.counted is not None:
                key, tally = entry.counted
                self._tallies.setdefault(key, Tally()).merge(tally)


def _entry(key: _Key, tally: Tally, now: float) -> _Entry:
    endpoint, variant, name = key
    datum = _datum(name, COUNTED[name], now, {"EndpointName": endpoint, "VariantName": variant})
    data = [datum | {"Values": list(tally.values), "Counts": list(tally.values.values())}]
    if tally.rest:
        data.append(datum | {"StatisticValues": tally.rest})
    return _Entry(data, (key, tally))


def _datum(name: str, unit: str, now: float, dimensions: dict[str, str]) -> dict[str, Any]:
    named = [{"Name": name, "Value": value} for name, value in dimensions.items()]
    return {"MetricName": name, "Dimensions": named, "Timestamp": now, "Unit": unit}


def _batches(entries: Iterable[_Entry]) -> Iterator[list[_Entry]]:
    """Within PutMetricData's limits."""
    batch: list[_Entry] = []
    count = size = 0
    for entry in entries:
        cost = len(json.dumps(entry.data))
        if batch and (count + len(entry.data) > _MOST_DATA or size + cost > _MOST_BYTES):
            yield batch
            batch, count, size = [], 0, 0
        batch.append(entry)
        count += len(entry.data)
        size += cost
    if batch:
        yield batch
