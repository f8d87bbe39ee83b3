"""The notifications of alarms to SNS topics: CloudWatch's document, and the subject above it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from endpoint.alarms.alarm import Alarm
from endpoint.alarms.history import statistic_in_capitals
from endpoint.alarms.reasons import compact
from endpoint.alarms.times import iso
from endpoint.aws.regions import display_name

_MAX_SUBJECT = 100
"""Characters that SNS takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A notification that is to be published."""

    alarm: str
    topic: str
    subject: str
    message: str
    at: float
    """Time at which the alarm's state began, in seconds since the epoch."""


def notices(old: Alarm, new: Alarm, region: str, account: str) -> list[Notice]:
    """Return a notification for each topic that is told of the state that `new` has come to."""
    topics = [action for action in new.actions(new.state) if is_topic(action)]
    if not topics:
        return []
    where = _region_name(region)
    subject, message = _subject(new, where), compact(_document(old, new, where, account))
    return [
        Notice(alarm=new.name, topic=topic, subject=subject, message=message, at=new.updated_at) for topic in topics
    ]


def is_topic(action: str) -> bool:
    return action.split(":", 3)[2:3] == ["sns"]


def _region_name(region: str) -> str:
    return re.sub(r"^Europe ", "EU ", display_name(region))  # CloudWatch kept the older name


def _subject(alarm: Alarm, where: str) -> str:
    """Return the state, the name and the region; the name is cut where there is no room, and in ASCII."""
    name = re.sub(r"[^\x20-\x7e]+", "_", alarm.name)
    room = _MAX_SUBJECT - len(f'{alarm.state}: "" in {where}')
    if len(name) > room:
        name = f"{name[: room - 3]}..."
    return f'{alarm.state}: "{name}" in {where}'


def _document(old: Alarm, new: Alarm, where: str, account: str) -> dict[str, object]:
    configuration = new.configuration
    is_extended = "ExtendedStatistic" in configuration
    trigger = {
        "MetricName": configuration["MetricName"],
        "Namespace": configuration["Namespace"],
        "StatisticType": "ExtendedStatistic" if is_extended else "Statistic",
        "ExtendedStatistic" if is_extended else "Statistic": statistic_in_capitals(new.statistic),
        "Unit": configuration.get("Unit"),
        "Dimensions": [{"value": each["Value"], "name": each["Name"]} for each in configuration.get("Dimensions", [])],
        "Period": new.period_s,
        "EvaluationPeriods": configuration["EvaluationPeriods"],
        "DatapointsToAlarm": configuration.get("DatapointsToAlarm"),
        "ComparisonOperator": configuration["ComparisonOperator"],
        "Threshold": float(configuration["Threshold"]),
        "TreatMissingData": new.rule.missing,
        "EvaluateLowSampleCountPercentile": configuration.get("EvaluateLowSampleCountPercentile", ""),
    }
    if trigger["DatapointsToAlarm"] is None:
        del trigger["DatapointsToAlarm"]
    return {
        "AlarmName": new.name,
        "AlarmDescription": configuration.get("AlarmDescription"),
        "AWSAccountId": account,
        "AlarmConfigurationUpdatedTimestamp": iso(new.configured_at),
        "NewStateValue": new.state,
        "NewStateReason": new.reason,
        "StateChangeTime": iso(new.updated_at),
        "Region": where,
        "AlarmArn": new.arn,
        "OldStateValue": old.state,
        "ActionExecutedAfterMuteWindow": False,
        "OKActions": configuration["OKActions"],
        "AlarmActions": configuration["AlarmActions"],
        "InsufficientDataActions": configuration["InsufficientDataActions"],
        "Trigger": trigger,
    }
