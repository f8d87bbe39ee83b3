from __future__ import annotations

import json
import logging
from typing import Any

import jsonschema_rs
import pytest

from container.telemetry.emf import Metric, members
from container.telemetry.json_logs import JSONFormatter
from testing.container.emf_document import extract_metrics

SPEED = Metric("Speed", 2.5, "Count/Second")


def logged(fields: dict[str, object]) -> dict[str, Any]:
    """Return the line as it leaves the container."""
    record = logging.makeLogRecord({"msg": "dimension", "levelname": "INFO", "name": "container.test", **fields})
    line: dict[str, Any] = json.loads(JSONFormatter().format(record), parse_constant=pytest.fail)
    return line


def test_log_line_with_metrics_is_valid() -> None:
    line = logged(members([SPEED, Metric("Left", 7.0, "Seconds")], {"Model": "tiny"}, at=1_700_000_000.25))
    assert extract_metrics(line) == {"Speed": 2.5, "Left": 7.0}
    assert line["_aws"]["Timestamp"] == 1_700_000_000_250
    assert (line["_aws"]["CloudWatchMetrics"][0]["Namespace"], line["Model"]) == ("Longhaul", "tiny")


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_metric_without_value_is_left_out(value: float | None) -> None:
    line = logged(members([SPEED, Metric("Left", value, "Seconds")], {"Model": "tiny"}, at=1_700_000_000))
    assert extract_metrics(line) == {"Speed": 2.5} and "Left" not in line


def test_line_without_metrics_has_no_members() -> None:
    assert members([Metric("Left", None, "Seconds")], {"Model": "tiny"}, at=1_700_000_000) == {}


@pytest.mark.parametrize(
    ("name", "dimension"),
    [("Größe", "Gr??e"), ("a\nb", "a?b"), (" ", "?"), ("x" * 2000, "x" * 1024), ("org/model:v1", "org/model:v1")],
)
def test_any_models_name_becomes_a_dimension(name: str, dimension: str) -> None:
    line = logged(members([SPEED], {"Model": name}, at=1_700_000_000))
    assert extract_metrics(line) and line["Model"] == dimension


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line.pop("Speed"),
        lambda line: line.pop("Model"),
        lambda line: line.update(Speed="2.5"),
        lambda line: line["_aws"].pop("Timestamp"),
        lambda line: line["_aws"].update(Timestamp=1_700_000_000.5),
        lambda line: line["_aws"].update(More=1),
        lambda line: line["_aws"]["CloudWatchMetrics"][0]["Metrics"][0].update(Unit="Tokens"),
        lambda line: line["_aws"]["CloudWatchMetrics"][0].update(Dimensions=[]),
    ],
)
def test_validator_refuses_invalid_documents(spoil: Any) -> None:
    line = logged(members([SPEED], {"Model": "tiny"}, at=1_700_000_000))
    spoil(line)
    with pytest.raises((AssertionError, KeyError, jsonschema_rs.ValidationError)):
        extract_metrics(line)
