from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.endpoint.endpoint_up import EndpointUp
from testing.server import eventually

GOOD = "arn:aws:sns:us-east-1:000000000000:good"


@pytest.fixture
def up(tmp_path: Path) -> Iterator[EndpointUp]:
    up = EndpointUp(tmp_path)
    try:
        yield up
    finally:
        up.close()


def history(up: EndpointUp, item_type: str) -> list[str]:
    items = up.client("cloudwatch").describe_alarm_history(HistoryItemType=item_type, ScanBy="TimestampAscending")
    return [item["HistorySummary"] for item in items["AlarmHistoryItems"]]


def alarm(up: EndpointUp) -> Any:
    (found,) = up.client("cloudwatch").describe_alarms(AlarmNamePrefix="mine")["MetricAlarms"]
    return found


def test_published_data_alarm_through_kill(up: EndpointUp) -> None:
    up.make_places()
    cloudwatch, dimensions = up.client("cloudwatch"), [{"Name": "Shop", "Value": "1"}]
    cloudwatch.put_metric_alarm(
        AlarmName="mine",
        Namespace="Shop",
        MetricName="Waiting",
        Dimensions=dimensions,
        ExtendedStatistic="p90",
        Period=60,
        EvaluationPeriods=3,
        DatapointsToAlarm=2,
        Threshold=5,
        ComparisonOperator="GreaterThanThreshold",
        AlarmActions=[GOOD],
    )
    minutes = [time.time() + number for number in range(-10, 180)]  # of one second each
    data = [{"MetricName": "Waiting", "Dimensions": dimensions, "Timestamp": at} for at in minutes]
    cloudwatch.put_metric_data(Namespace="Shop", MetricData=[datum | {"Value": 9.0} for datum in data])
    eventually(lambda: alarm(up)["StateValue"] == "ALARM")
    eventually(lambda: [notice["NewStateValue"] for notice in up.hear()] == ["ALARM"])
    before = alarm(up)
    assert before["StateReason"].startswith("Threshold Crossed: 2 out of the last 3 datapoints [9.0 (")
    up.kill()
    up.start()
    eventually(lambda: history(up, "Action") == [f"Successfully executed action {GOOD}"])
    assert alarm(up) == before
    low = {"Values": [1.0], "Counts": [99.0]}
    cloudwatch.put_metric_data(Namespace="Shop", MetricData=[datum | low for datum in data])
    eventually(lambda: alarm(up)["StateValue"] == "OK")
    assert history(up, "StateUpdate") == [
        "Alarm updated from INSUFFICIENT_DATA to ALARM",
        "Alarm updated from ALARM to OK",
    ]
