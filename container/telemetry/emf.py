"""CloudWatch's embedded metric format: log lines from which CloudWatch Logs makes metrics.

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

_MAX_DIMENSION_CHARACTERS = 1024
"""CloudWatch's documented limit of a dimension's value."""


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    value: float | None
    """None if there is no value at present."""
    unit: Unit


def members(metrics: Iterable[Metric], dimensions: Mapping[str, str], *, at: float) -> dict[str, object]:
    """Return the root members of a log line from which CloudWatch takes the metrics; `at` in seconds since the epoch.

    Metrics without a value, or with one that JSON can't write, are left out; if none is left, so are all members.
    """
    finite = {metric.name: metric for metric in metrics if metric.value is not None and math.isfinite(metric.value)}
    if not finite:
        return {}
    directive = {
        "Namespace": NAMESPACE,
        "Dimensions": [list(dimensions)],
        "Metrics": [{"Name": metric.name, "Unit": metric.unit} for metric in finite.values()],
    }
    metadata = {"Timestamp": int(at * 1000), "CloudWatchMetrics": [directive]}
    values = {name: metric.value for name, metric in finite.items()}
    # CloudWatch drops a metric if a dimension is empty or not plain ASCII.
    written = {
        name: re.sub(r"[^\x20-\x7e]", "?", value)[:_MAX_DIMENSION_CHARACTERS].strip() or "?"
        for name, value in dimensions.items()
    }
    return written | values | {"_aws": metadata}
