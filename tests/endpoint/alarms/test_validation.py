from __future__ import annotations

from typing import Any

import pytest

from endpoint.alarms.validation import validate_alarm, validate_tags
from endpoint.aws.errors import AwsError
from testing.endpoint.alarming import POLICY, REGION, TOPIC, parameters

DAY = "Metrics cannot be checked across more than a day (EvaluationPeriods * Period must be <= 86400)"
WEEK = "Metrics cannot be checked across more than a week (EvaluationPeriods * Period must be <= 604800)"
BOTH = (
    "PutMetricAlarm request can not be made with both Statistic and ExtendedStatistic parameters."
    " Only one of them should be present"
)

# What is given, the error's code, and what its message is or begins with.
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "Period 7": ({"Period": 7}, "ValidationError", "Period must be 10, 20, 30 or a multiple of 60"),
    "Period 90": ({"Period": 90}, "ValidationError", "Period must be 10, 20, 30 or a multiple of 60"),
    "over a day": ({"EvaluationPeriods": 1441}, "ValidationError", f"{DAY} for alarms using period < 3600"),
    "over a week": (
        {"Period": 3600, "EvaluationPeriods": 169},
        "ValidationError",
        f"{WEEK} for alarms using period >= 3600",
    ),
    "M over N": (
        {"DatapointsToAlarm": 4},
        "ValidationError",
        "DatapointsToAlarm must be less than or equal to EvaluationPeriods",
    ),
    "missing data": (
        {"TreatMissingData": "sometimes"},
        "ValidationError",
        "The value sometimes for parameter TreatMissingData is not supported.",
    ),
    "two statistics": ({"ExtendedStatistic": "p90"}, "ValidationError", BOTH),
    "no statistic": (
        {"Statistic": None},
        "ValidationError",
        "PutMetricAlarm request must have either Statistic or ExtendedStatistic",
    ),
    "p101": (
        {"Statistic": None, "ExtendedStatistic": "p101"},
        "InvalidParameterValue",
        "The value p101 for parameter ExtendedStatistic is not supported.",
    ),
    "Average as extended": (
        {"Statistic": None, "ExtendedStatistic": "Average"},
        "InvalidParameterValue",
        "The value Average for parameter ExtendedStatistic is not supported.",
    ),
    "low counts of an average": (
        {"EvaluateLowSampleCountPercentile": "ignore"},
        "ValidationError",
        "EvaluateLowSampleCountPercentile can only be set for an ExtendedStatistic that is a percentile",
    ),
    "low counts by another name": (
        {"Statistic": None, "ExtendedStatistic": "p90", "EvaluateLowSampleCountPercentile": "keep"},
        "InvalidParameterValue",
        "The value keep for parameter EvaluateLowSampleCountPercentile is not supported.",
    ),
    "metric and metrics": (
        {"Metrics": [{"Id": "m1"}]},
        "ValidationError",
        "MetricName should not be set if list of Metrics is set.",
    ),
    "metric math": (
        {"MetricName": None, "Metrics": [{"Id": "m1"}]},
        "ValidationError",
        "An alarm on a list of Metrics",
    ),
    "anomaly detection": ({"ThresholdMetricId": "ad1"}, "ValidationError", "ThresholdMetricId, an alarm on anomaly"),
    "anomaly operator": (
        {"ComparisonOperator": "GreaterThanUpperThreshold"},
        "ValidationError",
        "ComparisonOperator GreaterThanUpperThreshold, of anomaly detection,",
    ),
    "PromQL": ({"EvaluationCriteria": {}}, "ValidationError", "EvaluationCriteria, an alarm on a PromQL query,"),
    "interval": ({"EvaluationInterval": 60}, "ValidationError", "EvaluationInterval, of alarms on a query,"),
    "wall clock": (
        {"EvaluationWindow": {"WallClockWindow": {}}},
        "ValidationError",
        "EvaluationWindow.WallClockWindow is not supported by the local endpoint",
    ),
    "no window": ({"EvaluationWindow": {}}, "ValidationError", "EvaluationWindow must have exactly one of"),
    "no ARN": ({"AlarmActions": ["not-an-arn"]}, "ValidationError", "Invalid arn syntax: not-an-arn"),
    "Lambda": (
        {"OKActions": [f"arn:aws:lambda:{REGION}:111122223333:function:f"]},
        "ValidationError",
        f"The action arn:aws:lambda:{REGION}:111122223333:function:f is not supported by the local endpoint",
    ),
    "EC2": (
        {"AlarmActions": [f"arn:aws:automate:{REGION}:ec2:stop"]},
        "ValidationError",
        f"The action arn:aws:automate:{REGION}:ec2:stop is not supported",
    ),
    "SSM": (
        {"AlarmActions": [f"arn:aws:ssm:{REGION}:111122223333:opsitem:1"]},
        "ValidationError",
        f"The action arn:aws:ssm:{REGION}:111122223333:opsitem:1 is not supported",
    ),
    "another region": (
        {"AlarmActions": ["arn:aws:sns:us-west-2:111122223333:t"]},
        "ValidationError",
        f"Invalid region us-west-2 specified. Only {REGION} is supported.",
    ),
    "policy for OK": ({"OKActions": [POLICY]}, "ValidationError", "A scaling policy among OKActions is not supported"),
    "Threshold of no number": ({"Threshold": float("nan")}, "ValidationError", "Threshold must be a finite number"),
    "control character": ({"AlarmName": "a\nb"}, "ValidationError", "AlarmName must not contain ASCII control"),
    "dimension twice": (
        {"Dimensions": [{"Name": "D", "Value": "1"}, {"Name": "D", "Value": "2"}]},
        "ValidationError",
        "Dimensions must not have the same Name twice",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_alarm_is_refused_by_name(case: str) -> None:
    given, code, message = REFUSED[case]
    with pytest.raises(AwsError) as refusal:
        validate_alarm(parameters(**given), REGION)
    assert refusal.value.code == code and refusal.value.message.startswith(message)


@pytest.mark.parametrize(
    "name", ["MetricName", "Namespace", "Period", "EvaluationPeriods", "Threshold", "ComparisonOperator"]
)
def test_missing_parameter_is_named(name: str) -> None:
    with pytest.raises(AwsError, match=f"Value null at '{name[0].lower()}{name[1:]}' failed to satisfy constraint"):
        validate_alarm(parameters(**{name: None}), REGION)


@pytest.mark.parametrize(
    "given",
    [
        *({"Period": period, "EvaluationPeriods": 1} for period in (10, 20, 30, 60, 120, 86400, 604800)),
        *({"TreatMissingData": value} for value in ("missing", "ignore", "breaching", "notBreaching")),
        {"Period": 60, "EvaluationPeriods": 1440},
        {"Period": 3600, "EvaluationPeriods": 168},
        {"DatapointsToAlarm": 3},
        {"Statistic": None, "ExtendedStatistic": "p99.9", "EvaluateLowSampleCountPercentile": "ignore"},
        {"AlarmActions": [POLICY, f"{POLICY}:createdBy/1", TOPIC], "OKActions": [TOPIC]},
        {"EvaluationWindow": {"SlidingWindow": {}}, "WarmUpConfiguration": {"WarmUpPeriodDurationInMinutes": 5}},
    ],
    ids=str,
)
def test_valid_alarm_is_taken(given: dict[str, Any]) -> None:
    validate_alarm(parameters(**given), REGION)


@pytest.mark.parametrize("key", ["aws:x", "AWS:x", "aWs:"])
def test_reserved_tag_is_refused(key: str) -> None:
    with pytest.raises(AwsError) as refusal:
        validate_tags(["fine", key])
    assert (refusal.value.code, refusal.value.status) == ("AccessDenied", 403)
    assert refusal.value.message == 'The provided tag keys must not start with any case of "aws:"'
