"""The same requests on other endpoints: one whose instances are always on, and a real-time one."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapreplace
from math import ceil

import numpy as np

from .inputs import Inputs
from .workload import Floats, Workload

REAL_TIME_LIMIT_S = 60.0
"""Seconds that a real-time endpoint gives a model to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """An endpoint with a number of instances that never changes."""

    name: str
    requests: int
    peak_instances: int
    """Instances, all of the time."""
    waiting_s: Floats
    """Seconds that each request waited that was answered."""
    unanswered: int
    end_s: float

    @property
    def instance_s(self) -> float:
        return self.peak_instances * self.end_s

    def percentile_s(self, percent: float) -> float:
        return float(np.percentile(self.waiting_s, percent)) if len(self.waiting_s) else 0.0

    def usd(self, usd_per_hour: float) -> float:
        return self.instance_s / 3600 * usd_per_hour


def always_on(workload: Workload, inputs: Inputs, bound_s: float) -> Constant:
    """Return an asynchronous endpoint with the fewest instances whose p95 of waiting is within a bound."""
    count = max(ceil(float(workload.service_s.sum()) / workload.duration_s / inputs.concurrency), 1)
    waiting_s, end_s = _constant_waiting(workload, inputs, count)
    while len(waiting_s) and float(np.percentile(waiting_s, 95)) > bound_s:
        count += 1
        waiting_s, end_s = _constant_waiting(workload, inputs, count)
    return Constant(
        name="always on",
        requests=len(workload),
        peak_instances=count,
        waiting_s=waiting_s,
        unanswered=0,
        end_s=end_s,
    )


def real_time(workload: Workload, inputs: Inputs) -> Constant:
    """Return a real-time endpoint for the peak: no request waits, and what takes longer than 60 s is not answered."""
    service_s = _crowded(workload, inputs)
    starts = np.sort(workload.arrivals_s)
    ends = np.sort(workload.arrivals_s + np.minimum(service_s, REAL_TIME_LIMIT_S))
    running = np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right")
    peak = int(running.max()) if len(running) else 0
    late = int((service_s > REAL_TIME_LIMIT_S).sum())
    return Constant(
        name="real time",
        requests=len(workload),
        peak_instances=max(ceil(peak / inputs.concurrency), 1),
        waiting_s=np.zeros(len(workload) - late),
        unanswered=late,
        end_s=workload.duration_s,
    )


def _crowded(workload: Workload, inputs: Inputs) -> Floats:
    """Return the services' seconds on an instance all of whose places are taken."""
    crowded: Floats = workload.service_s * (1 + inputs.slowdown * (inputs.concurrency - 1))
    return crowded


def _constant_waiting(workload: Workload, inputs: Inputs, count: int) -> tuple[Floats, float]:
    """Return how long each request waits with `count` instances, and when the last is done."""
    free_at = [0.0] * (count * inputs.concurrency)
    waiting = []
    for arrival_s, service_s in zip(workload.arrivals_s.tolist(), _crowded(workload, inputs).tolist(), strict=True):
        start_s = max(arrival_s, free_at[0])
        heapreplace(free_at, start_s + service_s)
        waiting.append(start_s - arrival_s)
    return np.array(waiting), max(workload.duration_s, *free_at)
