"""Requests of a simulation: when they arrive, and how long each takes on an instance of its own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inputs import UnusableInputs

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

Floats = NDArray[np.float64]


class UnusableTrace(UnusableInputs):
    """A trace can't be read; the message says where and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A log-normal distribution of the seconds that a request takes; `variation` 0 makes all of them equal."""

    mean_s: float = 60.0
    variation: float = 1.0
    """Coefficient of variation: standard deviation over mean."""

    def draw(self, count: int, random: np.random.Generator) -> Floats:
        if not self.variation:
            return np.full(count, self.mean_s)
        sigma_squared = float(np.log1p(self.variation**2))
        return random.lognormal(np.log(self.mean_s) - sigma_squared / 2, np.sqrt(sigma_squared), count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests in the order of their arrival. Time 0 is the midnight at which a Monday begins."""

    name: str
    duration_s: float
    """Seconds for which the endpoint is looked at; nothing arrives after them."""
    arrivals_s: Floats
    service_s: Floats

    def __len__(self) -> int:
        return len(self.arrivals_s)


def office_hours(service: Service, random: np.random.Generator, per_hour: float, days: int) -> Workload:
    """Draw a week in which people work from 8 to 18: two requests an hour in their nights, one at the weekend."""
    shape = {8: 0.6, 9: 1.2, 10: 1.4, 11: 1.4, 12: 0.8, 13: 0.9, 14: 1.3, 15: 1.3, 16: 1.0, 17: 0.6}
    rates = []
    for hour in range(days * 24):
        is_weekend = hour // 24 % 7 >= 5
        rates.append(1.0 if is_weekend else per_hour * shape[hour % 24] if hour % 24 in shape else 2.0)
    return _from_rates("office-hours", rates, service, random)


def poisson(service: Service, random: np.random.Generator, per_hour: float, days: int) -> Workload:
    """Draw requests that don't depend on one another nor on the time of the day."""
    return _from_rates("poisson", [per_hour] * (24 * days), service, random)


def bursts(service: Service, random: np.random.Generator, per_hour: float, days: int) -> Workload:
    """Draw a burst every six hours, of six hours' requests that all come within a minute; nothing between them."""
    size = round(6 * per_hour)
    begins = np.arange(3 * HOUR_S, days * DAY_S, 6 * HOUR_S)
    arrivals = np.sort((begins[:, None] + random.uniform(0, 60, (len(begins), size))).ravel())
    return _made("bursts", days * DAY_S, arrivals, service, random)


def million(service: Service, random: np.random.Generator, per_hour: float, days: int) -> Workload:
    """Draw exactly as many requests as asked for; three times as many an hour at noon as at midnight."""
    count = round(per_hour * 24 * days)
    grid = np.linspace(0, days * DAY_S, 24 * 60 * days + 1)
    share = np.cumsum(1 - 0.5 * np.cos(2 * np.pi * grid / DAY_S))
    arrivals = np.sort(np.interp(random.uniform(share[0], share[-1], count), share, grid))
    return _made("million", days * DAY_S, arrivals, service, random)


def _from_rates(name: str, per_hour: list[float], service: Service, random: np.random.Generator) -> Workload:
    counts = random.poisson(per_hour)
    hours = np.repeat(np.arange(len(per_hour)), counts)
    arrivals = np.sort((hours + random.uniform(0, 1, len(hours))) * HOUR_S)
    return _made(name, len(per_hour) * HOUR_S, arrivals, service, random)


def _made(name: str, duration_s: float, arrivals: Floats, service: Service, random: np.random.Generator) -> Workload:
    drawn = service.draw(len(arrivals), random)
    return Workload(name=name, duration_s=duration_s, arrivals_s=arrivals, service_s=drawn)


def read_trace(path: Path, service: Service, random: np.random.Generator) -> Workload:
    """Read JSON lines or CSV with a field `arrival_s`, and `service_s` if it is known: seconds, from 0 on.

    Raises UnusableTrace.
    """
    arrivals, services = [], []
    for number, row in enumerate(_rows(path), 1):
        try:
            arrivals.append(float(row["arrival_s"]))
            services.append(float(row["service_s"]) if row.get("service_s") not in (None, "") else np.nan)
        except (KeyError, TypeError, ValueError) as error:
            raise UnusableTrace(f"{path}, record {number}: {error!r}; a record needs arrival_s, a number") from None
    order = np.argsort(np.array(arrivals, dtype=np.float64), kind="stable")
    sorted_arrivals = np.array(arrivals, dtype=np.float64)[order]
    sorted_services = np.array(services, dtype=np.float64)[order]
    unknown = np.isnan(sorted_services)
    sorted_services[unknown] = service.draw(int(unknown.sum()), random)
    if len(order) and not (
        np.isfinite(sorted_arrivals).all() and sorted_arrivals[0] >= 0 and sorted_services.min() > 0
    ):
        raise UnusableTrace(f"{path}: times must be finite, arrivals not negative, and services above 0")
    last_s = float(sorted_arrivals[-1]) if len(order) else 0.0
    duration_s = max(np.ceil(last_s / HOUR_S), 1.0) * HOUR_S
    return Workload(name=path.name, duration_s=duration_s, arrivals_s=sorted_arrivals, service_s=sorted_services)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise UnusableTrace(f"{path}: {error}") from None
    with io.StringIO(text, newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
            return
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UnusableTrace(f"{path}, line {number}: {error}") from None
            if not isinstance(row, dict):
                raise UnusableTrace(f"{path}, line {number}: not an object")
            yield row
