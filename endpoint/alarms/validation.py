"""Rules of PutMetricAlarm and of tags beyond those for each parameter by itself. Pure.

What CloudWatch has and the local endpoint can't honour is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from endpoint.alarms.alarm import ACTION_LISTS
from endpoint.alarms.statistics import parse_statistic, percentile_of
from endpoint.aws.errors import AwsError

MAX_TAGS = 50

_LOCAL = "is not supported by the local endpoint"
_DAY_S = 86400
_WEEK_S = 604800
_HOUR_S = 3600
_SHORT_PERIODS_S = (10, 20, 30)
_ARN = re.compile(r"arn:[\w-]+:(?P<service>[\w-]+):(?P<region>[\w-]*):(?P<account>[\w-]*):(?P<resource>.+)")
_ANOMALY = ("LessThanLowerOrGreaterThanUpperThreshold", "LessThanLowerThreshold", "GreaterThanUpperThreshold")
_MATH = "a list of Metrics, which are metric math,"


def invalid(message: str) -> AwsError:
    """Return CloudWatch's error for refused parameters."""
    return AwsError("ValidationError", message)


def validate_alarm(parameters: Mapping[str, Any], region: str) -> None:
    """Check the parameters of PutMetricAlarm; each has its constraints already. Raises AwsError."""
    if re.search(r"[\x00-\x1f\x7f]", parameters["AlarmName"]):
        raise invalid("AlarmName must not contain ASCII control characters")
    _refuse_unsupported(parameters)
    for name in ("MetricName", "Namespace", "Period", "EvaluationPeriods", "Threshold", "ComparisonOperator"):
        if name not in parameters:
            null = f"Value null at '{name[:1].lower()}{name[1:]}' failed to satisfy constraint: Member must not be null"
            raise invalid(f"1 validation error detected: {null}")
    if not isfinite(parameters["Threshold"]):
        raise invalid("Threshold must be a finite number")
    _validate_statistic(parameters)
    _validate_periods(parameters)
    missing = parameters.get("TreatMissingData", "missing")
    if missing not in ("missing", "ignore", "breaching", "notBreaching"):
        raise invalid(f"The value {missing} for parameter TreatMissingData is not supported.")
    names = [pair["Name"] for pair in parameters.get("Dimensions", [])]
    if len(set(names)) < len(names):
        raise invalid("Dimensions must not have the same Name twice")
    for state_actions in ACTION_LISTS.values():
        for action in parameters.get(state_actions, []):
            _validate_action(action, state_actions, region)


def validate_tags(tags: Iterable[str]) -> None:
    """Check the keys of tags that a user gives. Raises AwsError."""
    if any(key.lower().startswith("aws:") for key in tags):
        raise AwsError("AccessDenied", 'The provided tag keys must not start with any case of "aws:"', 403)


def _refuse_unsupported(parameters: Mapping[str, Any]) -> None:
    for name, noun in {
        "EvaluationCriteria": "EvaluationCriteria, an alarm on a PromQL query,",
        "EvaluationInterval": "EvaluationInterval, of alarms on a query,",
        "ThresholdMetricId": "ThresholdMetricId, an alarm on anomaly detection,",
    }.items():
        if name in parameters:
            raise invalid(f"{noun} {_LOCAL}.")
    if parameters.get("Metrics"):
        if "MetricName" in parameters:
            raise invalid("MetricName should not be set if list of Metrics is set.")
        raise invalid(f"An alarm on {_MATH} {_LOCAL}: give MetricName, Namespace, Dimensions, Period and Statistic.")
    if parameters.get("ComparisonOperator") in _ANOMALY:
        raise invalid(f"ComparisonOperator {parameters['ComparisonOperator']}, of anomaly detection, {_LOCAL}.")
    window = parameters.get("EvaluationWindow", {"SlidingWindow": {}})
    if len(window) != 1:
        raise invalid("EvaluationWindow must have exactly one of SlidingWindow and WallClockWindow")
    if "WallClockWindow" in window:
        raise invalid(f"EvaluationWindow.WallClockWindow {_LOCAL}: it has the sliding window.")


def _validate_statistic(parameters: Mapping[str, Any]) -> None:
    statistic, extended = parameters.get("Statistic"), parameters.get("ExtendedStatistic")
    if statistic and extended:
        raise invalid(
            "PutMetricAlarm request can not be made with both Statistic and ExtendedStatistic parameters."
            " Only one of them should be present"
        )
    if not statistic and not extended:
        raise invalid("PutMetricAlarm request must have either Statistic or ExtendedStatistic")
    if extended:
        try:
            if extended in ("SampleCount", "Sum", "Average", "Minimum", "Maximum"):
                raise ValueError(extended)
            parse_statistic(extended)
        except ValueError:
            raise _bad_value("ExtendedStatistic", extended) from None
    low_counts = parameters.get("EvaluateLowSampleCountPercentile")
    if low_counts is not None:
        if low_counts not in ("evaluate", "ignore"):
            raise _bad_value("EvaluateLowSampleCountPercentile", low_counts)
        if percentile_of(extended or "") is None:
            raise invalid(
                "EvaluateLowSampleCountPercentile can only be set for an ExtendedStatistic that is a percentile"
            )


def _validate_periods(parameters: Mapping[str, Any]) -> None:
    period, periods = parameters["Period"], parameters["EvaluationPeriods"]
    if period not in _SHORT_PERIODS_S and period % 60:
        raise invalid("Period must be 10, 20, 30 or a multiple of 60")
    if period < _HOUR_S and period * periods > _DAY_S:
        raise invalid(
            "Metrics cannot be checked across more than a day (EvaluationPeriods * Period must be <= 86400)"
            " for alarms using period < 3600"
        )
    if period * periods > _WEEK_S:
        raise invalid(
            "Metrics cannot be checked across more than a week (EvaluationPeriods * Period must be <= 604800)"
            " for alarms using period >= 3600"
        )
    if parameters.get("DatapointsToAlarm", periods) > periods:
        raise invalid("DatapointsToAlarm must be less than or equal to EvaluationPeriods")


def _validate_action(action: str, state_actions: str, region: str) -> None:
    match = _ARN.fullmatch(action)
    if match is None:
        raise invalid(f"Invalid arn syntax: {action}")
    service = match["service"]
    is_policy = service == "autoscaling" and match["resource"].startswith("scalingPolicy:")
    if service != "sns" and not is_policy:
        raise invalid(f"The action {action} {_LOCAL}: it has SNS topics and scaling policies.")
    if match["region"] != region:
        raise invalid(f"Invalid region {match['region']} specified. Only {region} is supported.")
    if is_policy and state_actions != "AlarmActions":
        raise invalid(f"A scaling policy among {state_actions} {_LOCAL}: it runs policies of AlarmActions.")


def _bad_value(name: str, value: str) -> AwsError:
    return AwsError("InvalidParameterValue", f"The value {value} for parameter {name} is not supported.")
