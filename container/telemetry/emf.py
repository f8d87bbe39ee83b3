"""CloudWatch's embedded metric format: a log line of which CloudWatch Logs makes metrics.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

NAMESPACE = "Longhaul"
Unit = Literal["Count", "Count/Second", "Percent", "Seconds"]

_LONGEST_VALUE = 1024
"""Of a dimension, in characters, as CloudWatch documents it."""


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    value: float | None
    """None where there is nothing to tell."""
    unit: Unit


def members(metrics: Iterable[Metric], dimensions: Mapping[str, str], *, at: float) -> dict[str, object]:
    """What a log line has at its root so that CloudWatch takes the metrics from it; `at` in seconds since the epoch.

    A metric without a value, or with one that JSON can't write, is not of the line; a line without any is no document.
    """
    told = {metric.name: metric for metric in metrics if metric.value is not None and math.isfinite(metric.value)}
    if not told:
        return {}
    directive = {
        "Namespace": NAMESPACE,
        "Dimensions": [list(dimensions)],
        "Metrics": [{"Name": metric.name, "Unit": metric.unit} for metric in told.values()],
    }
    metadata = {"Timestamp": int(at * 1000), "CloudWatchMetrics": [directive]}
    values = {name: metric.value for name, metric in told.items()}
    return {name: _dimension(value) for name, value in dimensions.items()} | values | {"_aws": metadata}


def _dimension(value: str) -> str:
    """CloudWatch refuses a metric for any character in a dimension that isn't plain ASCII, and for an empty one."""
    return re.sub(r"[^\x20-\x7e]", "?", value)[:_LONGEST_VALUE].strip() or "?"
