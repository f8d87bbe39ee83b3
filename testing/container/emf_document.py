"""The metrics that CloudWatch Logs would extract from a log line, by the embedded metric format's specification."""

from __future__ import annotations

from typing import Any

import jsonschema_rs

UNITS = [
    *("Seconds", "Microseconds", "Milliseconds", "Percent", "Count", "Count/Second", "None"),
    *(f"{size}{what}{per}" for per in ("", "/Second") for what in ("bytes", "bits") for size in ("Kilo", "Mega")),
]
NAME = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x20-\\x7e]+$"}


def closed(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the schema of an object with these members and no others."""
    return {
        "type": "object",
        "required": list(required),
        "properties": required | (optional or {}),
        "additionalProperties": False,
    }


DEFINITION = closed({"Name": NAME}, {"Unit": {"enum": UNITS}, "StorageResolution": {"enum": [1, 60]}})
DIRECTIVE = closed(
    {
        "Namespace": NAME,
        "Dimensions": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "array", "maxItems": 9, "uniqueItems": True, "items": NAME},
        },
        "Metrics": {"type": "array", "minItems": 1, "maxItems": 100, "items": DEFINITION},
    }
)
METADATA = closed(
    {
        "Timestamp": {"type": "integer", "minimum": 1_500_000_000_000, "maximum": 5_000_000_000_000},
        "CloudWatchMetrics": {"type": "array", "minItems": 1, "items": DIRECTIVE},
    }
)
_ROOT = jsonschema_rs.validator_for({"type": "object", "required": ["_aws"], "properties": {"_aws": METADATA}})


def extract_metrics(line: dict[str, Any]) -> dict[str, float]:
    """Extract the metrics by name. Fail if CloudWatch would not take the line."""
    _ROOT.validate(line)
    found: dict[str, float] = {}
    for directive in line["_aws"]["CloudWatchMetrics"]:
        for name in (name for names in directive["Dimensions"] for name in names):
            value = line[name]
            assert isinstance(value, str) and value.isascii() and value.isprintable() and value.strip(), name
            assert len(value) <= 1024
        for definition in directive["Metrics"]:
            value = line[definition["Name"]]
            assert isinstance(value, (int, float)) and not isinstance(value, bool), definition
            assert definition["Name"] not in found, "the metric is there twice"
            found[definition["Name"]] = value
    return found
