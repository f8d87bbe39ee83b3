"""Items of an alarm's history: its configuration, its state and its actions, in CloudWatch's form. Pure."""

from __future__ import annotations

from typing import Any

from endpoint.alarms.alarm import Alarm, HistoryItem
from endpoint.alarms.reasons import compact
from endpoint.alarms.times import iso

_STATISTICS = {"SampleCount": "SAMPLE_COUNT", "Average": "AVERAGE", "Sum": "SUM", "Minimum": "MINIMUM"} | {
    "Maximum": "MAXIMUM"
}


def statistic_in_capitals(name: str) -> str:
    """Return AVERAGE for Average; an extended statistic stays as it is."""
    return _STATISTICS.get(name, name)


def configured(old: Alarm | None, new: Alarm | None, at: float) -> HistoryItem:
    """Return the item of an alarm that was created (`old` is None), updated, or deleted (`new` is None)."""
    alarm = new or old
    assert alarm is not None
    data: dict[str, Any] = {"version": "1.0"}
    if new is None:
        verb, data["type"], data["deletedAlarm"] = "deleted", "Delete", _document(alarm)
    elif old is None:
        verb, data["type"], data["createdAlarm"] = "created", "Create", _document(alarm)
    else:
        verb, data["type"], data["updatedAlarm"] = "updated", "Update", _document(new)
        before = _document(old)
        data["originalUpdatedFields"] = {
            name: value for name, value in before.items() if data["updatedAlarm"].get(name) != value
        }
    summary = f'Alarm "{alarm.name}" {verb}'
    return HistoryItem(alarm=alarm.name, at=at, type="ConfigurationUpdate", summary=summary, data=compact(data))


def transitioned(old: Alarm, new: Alarm) -> HistoryItem:
    """Return the item of an alarm whose state changed."""
    data = f'{{"version":"1.0","oldState":{_state(old)},"newState":{_state(new)}}}'
    summary = f"Alarm updated from {old.state} to {new.state}"
    return HistoryItem(alarm=new.name, at=new.updated_at, type="StateUpdate", summary=summary, data=data)


def acted(
    alarm: str, action: str, *, at: float, state_at: float, error: str | None = None, message: str | None = None
) -> HistoryItem:
    """Return the item of an action that was executed, with the `message` that was published, or failed by `error`.

    `state_at` is when the alarm got into the state that the action is for.
    """
    verb = "Successfully executed action" if error is None else "Failed to execute action"
    data = {
        "actionState": "Succeeded" if error is None else "Failed",
        "stateUpdateTimestamp": round(state_at * 1000),
        "notificationResource": action,
        "publishedMessage": None if message is None else compact({"default": message}),
        "error": error,
        "muteWindowEndTimestamp": None,
    }
    return HistoryItem(alarm=alarm, at=at, type="Action", summary=f"{verb} {action}", data=compact(data))


def _state(alarm: Alarm) -> str:
    """Return a state with its reason data as they were given, whatever JSON they are."""
    text = compact({"stateValue": alarm.state, "stateReason": alarm.reason})
    return text if alarm.reason_data is None else f'{text[:-1]},"stateReasonData":{alarm.reason_data}}}'


def _document(alarm: Alarm) -> dict[str, Any]:
    configuration = alarm.configuration
    document = {
        "alarmName": alarm.name,
        "alarmDescription": configuration.get("AlarmDescription"),
        "alarmArn": alarm.arn,
        "alarmConfigurationUpdatedTimestamp": iso(alarm.configured_at),
        "namespace": configuration["Namespace"],
        "metricName": configuration["MetricName"],
        "extendedStatistic": statistic_in_capitals(alarm.statistic),
        "period": alarm.period_s,
        "unit": configuration.get("Unit"),
        "dimensions": [{"name": pair["Name"], "value": pair["Value"]} for pair in configuration.get("Dimensions", [])],
        "threshold": float(configuration["Threshold"]),
        "comparisonOperator": configuration["ComparisonOperator"],
        "evaluationPeriods": configuration["EvaluationPeriods"],
        "datapointsToAlarm": configuration.get("DatapointsToAlarm"),
        "treatMissingData": configuration.get("TreatMissingData"),
        "evaluateLowSampleCountPercentile": configuration.get("EvaluateLowSampleCountPercentile"),
        "stateValue": alarm.state,
        "stateUpdatedTimestamp": iso(alarm.updated_at),
        "actionsEnabled": configuration["ActionsEnabled"],
        "alarmActions": configuration["AlarmActions"],
        "insufficientDataActions": configuration["InsufficientDataActions"],
        "okactions": configuration["OKActions"],
    }
    return {name: value for name, value in document.items() if value is not None}
