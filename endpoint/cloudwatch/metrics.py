"""Metrics that asynchronous endpoints publish to CloudWatch, in the namespace AWS/SageMaker.

Times in them are seconds on the wall however quick the platform's clock; only how often they are sent follows it.
Counts that the backend does not take are sent when it is back, with the time of then. A lost answer can make a batch
count twice, as with any client of CloudWatch.

With no instance, ApproximateBacklogSizePerInstance is the backlog itself, so that a target-tracking policy alone leaves
zero when the backlog is over its target, and HasBacklogWithoutCapacity has data only while there is a backlog.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from endpoint.backend.clients import Clients
from endpoint.cloudwatch.batches import batches
from endpoint.cloudwatch.sender import Sender
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog, NotFound
from endpoint.state.queue import Queue

NAMESPACE = "AWS/SageMaker"
PERIOD_S = 60.0

GAUGES = {
    "ApproximateBacklogSize": "Count",
    "ApproximateBacklogSizePerInstance": "Count",
    "ApproximateAgeOfOldestRequest": "Seconds",
    "HasBacklogWithoutCapacity": "Count",
}
"""Units of the gauges; their dimension is EndpointName."""

COUNTERS = {
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
"""Units of the counters; their dimensions are EndpointName and VariantName."""

# Limits of PutMetricData: 1,000 data and 1 MB, with 150 values each.
_MAX_DATA = 1000
_MAX_BYTES = 900_000
_MAX_VALUES = 150

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """Values of one metric since it was last sent: up to 150 different ones as they are, a statistic set of others."""

    values: dict[float, float] = field(default_factory=dict)
    """Number of times that each value was counted."""
    rest: dict[str, float] = field(default_factory=dict)
    """StatisticValues of the other values; empty if there are none."""

    def add(self, value: float, times: float = 1.0) -> None:
        if value in self.values or len(self.values) < _MAX_VALUES:
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


Record = Callable[[str, Sequence[dict[str, Any]]], None]
"""Function that gets a namespace and data in the form of PutMetricData's MetricData."""

_Key = tuple[str, str, str]  # endpoint, variant, name


@dataclass(frozen=True, slots=True)
class _Entry:
    datum: dict[str, Any]
    unsent: tuple[_Key, Tally] | None = None
    """The counts that are kept if the datum isn't sent; None for a gauge, which is its period's alone."""


class Metrics:
    """Owns the counts that are not sent yet."""

    def __init__(
        self,
        settings: Settings,
        backend: Clients,
        catalog: Catalog,
        queue: Queue,
        healthy: Callable[[str], int],
        record: Record = lambda namespace, data: None,
    ) -> None:
        """`healthy` returns the number of healthy instances of an endpoint; `record` gets all data once, at once."""
        self._settings = settings
        self._backend = backend
        self._catalog = catalog
        self._queue = queue
        self._healthy = healthy
        self._record = record
        self._tallies: dict[_Key, Tally] = {}
        self._sender = Sender("CloudWatch")
        self._send_lock = asyncio.Lock()

    def count(self, endpoint: str, variant: str, name: str, value: float = 1.0) -> None:
        """Add a value to a counter. Raises ValueError for a name that isn't in COUNTERS."""
        if name not in COUNTERS:
            raise ValueError(f"{name} is not a metric of an invocation")
        self._tallies.setdefault((endpoint, variant, name), Tally()).add(float(value))
        dimensions = {"EndpointName": endpoint, "VariantName": variant}
        self._record(NAMESPACE, [_datum(name, COUNTERS[name], time.time(), dimensions) | {"Value": float(value)}])

    async def run(self) -> None:
        """Send counts and gauges at the end of each period, until cancelled. Never raises.

        A backend that takes longer than a period gets no gauges meanwhile, and `record` gets them all the same.
        """
        clock = asyncio.get_running_loop().time
        period_s = self._settings.real_s(PERIOD_S)
        end = clock()
        sending: asyncio.Task[None] | None = None
        while True:
            end = max(end + period_s, clock())  # not a period after the last was read: some minute would have none
            await asyncio.sleep(end - clock())
            gauges = await self._read_gauges()
            if sending is None or sending.done():
                # What is being sent when this is cancelled is sent to its end.
                sending = asyncio.create_task(self._send_period(gauges))

    async def flush(self) -> None:
        """Make one attempt at sending the counts."""
        await self._send([])

    async def _read_gauges(self) -> list[_Entry]:
        try:
            gauges = [gauge async for gauge in self._gauges(time.time())]
            self._record(NAMESPACE, [gauge.datum for gauge in gauges])
        except Exception:
            _LOG.exception("The backlogs could not be read")
            gauges = []
        return gauges

    async def _send_period(self, gauges: list[_Entry]) -> None:
        try:
            await self._send(gauges)
        except Exception:
            _LOG.exception("The metrics could not be sent")

    async def _gauges(self, now: float) -> AsyncIterator[_Entry]:
        for endpoint in await self._catalog.endpoints():
            if endpoint.status in ("Creating", "Failed", "Deleting"):
                continue
            try:
                deployment = await self._catalog.deployment(endpoint, endpoint.config_name)
            except NotFound:
                continue
            if not deployment.config.get("AsyncInferenceConfig"):
                continue
            backlog = await self._queue.backlog(endpoint.name)
            instances = self._healthy(endpoint.name)
            oldest_s = max(now - (backlog.oldest_at or now), 0.0)
            for name, value in gauge_values(backlog.size, oldest_s, instances).items():
                datum = _datum(name, GAUGES[name], now, {"EndpointName": endpoint.name})
                yield _Entry(datum | {"Value": value})

    async def _send(self, gauges: list[_Entry]) -> None:
        async with self._send_lock:
            tallies, self._tallies = self._tallies, {}
            now = time.time()
            entries = list(gauges)
            for key, tally in tallies.items():
                endpoint, variant, name = key
                datum = _datum(name, COUNTERS[name], now, {"EndpointName": endpoint, "VariantName": variant})
                values = {"Values": list(tally.values), "Counts": list(tally.values.values())}
                entries.append(_Entry(datum | values, (key, Tally(values=tally.values))))
                if tally.rest:
                    entries.append(_Entry(datum | {"StatisticValues": tally.rest}, (key, Tally(rest=tally.rest))))
            is_down = False
            for batch in batches(
                entries, size=lambda entry: len(json.dumps(entry.datum)), max_items=_MAX_DATA, max_size=_MAX_BYTES
            ):
                data = [entry.datum for entry in batch]
                if is_down or not await self._sender.send(partial(self._put, data), f"{len(data)} metrics"):
                    is_down = True
                    for key, tally in (entry.unsent for entry in batch if entry.unsent is not None):
                        self._tallies.setdefault(key, Tally()).merge(tally)

    def _put(self, data: list[dict[str, Any]]) -> None:
        self._backend.client("cloudwatch").put_metric_data(Namespace=NAMESPACE, MetricData=data)


def gauge_values(backlog: int, oldest_s: float, instances: int) -> dict[str, float]:
    """Return the gauges that have data, of an endpoint with a backlog whose oldest request came `oldest_s` ago.

    The backlog counts what waits and what is worked on.
    """
    values = {
        "ApproximateBacklogSize": float(backlog),
        "ApproximateBacklogSizePerInstance": backlog / max(instances, 1),
        "ApproximateAgeOfOldestRequest": oldest_s,
    }
    if backlog or instances:
        values["HasBacklogWithoutCapacity"] = float(instances == 0)
    return values


def _datum(name: str, unit: str, now: float, dimensions: dict[str, str]) -> dict[str, Any]:
    named = [{"Name": name, "Value": value} for name, value in dimensions.items()]
    return {"MetricName": name, "Dimensions": named, "Timestamp": now, "Unit": unit}
