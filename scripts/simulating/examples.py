"""Examples of workloads, each with the inputs that go with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import workload
from .workload import Service, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    draw: Callable[..., Workload]
    """Function of `workload` that draws the requests."""
    per_hour: float
    days: int
    service: Service
    concurrency: int
    max_capacity: int


EXAMPLES = {
    "office-hours": Example(
        draw=workload.office_hours, per_hour=240, days=7, service=Service(mean_s=60), concurrency=4, max_capacity=4
    ),
    "poisson": Example(
        draw=workload.poisson, per_hour=60, days=1, service=Service(mean_s=60), concurrency=4, max_capacity=4
    ),
    "bursts": Example(
        draw=workload.bursts, per_hour=50, days=1, service=Service(mean_s=60), concurrency=4, max_capacity=8
    ),
    "million": Example(
        draw=workload.million,
        per_hour=1e6 / 24,
        days=1,
        service=Service(mean_s=8, variation=0.5),
        concurrency=16,
        max_capacity=16,
    ),
}
