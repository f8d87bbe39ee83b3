"""An alarm as it is kept: its configuration and its state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from endpoint.alarms.judge import MissingData, Rule, State
from endpoint.alarms.series import Metric, metric_of

Configuration = dict[str, Any]
"""Parameters of PutMetricAlarm, without Tags, with ActionsEnabled and the three lists of actions."""

HistoryType = Literal["ConfigurationUpdate", "StateUpdate", "Action"]

ACTION_LISTS: dict[State, str] = {
    "OK": "OKActions",
    "ALARM": "AlarmActions",
    "INSUFFICIENT_DATA": "InsufficientDataActions",
}
"""Names of the actions' lists, by the state whose beginning invokes them."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A metric alarm. Times are seconds since the epoch."""

    name: str
    arn: str
    configuration: Configuration
    configured_at: float
    created_at: float
    state: State = "INSUFFICIENT_DATA"
    reason: str = "Unchecked: Initial alarm creation"
    reason_data: str | None = None
    """StateReasonData: the JSON of what the state was told from."""
    updated_at: float
    """StateUpdatedTimestamp."""
    transitioned_at: float
    """StateTransitionedTimestamp."""

    @cached_property
    def rule(self) -> Rule:
        configuration = self.configuration
        periods: int = configuration["EvaluationPeriods"]
        datapoints: int = configuration.get("DatapointsToAlarm", periods)
        return Rule(
            comparison=configuration["ComparisonOperator"],
            threshold=configuration["Threshold"],
            periods=periods,
            datapoints=datapoints,
            missing=configuration.get("TreatMissingData", _default_missing(configuration["Namespace"])),
        )

    @cached_property
    def metric(self) -> Metric:
        return metric_of(self.configuration)

    @property
    def unit(self) -> str | None:
        """Unit of the samples that count; None: all of them."""
        return self.configuration.get("Unit")

    @property
    def period_s(self) -> int:
        """Period as it was given, not divided by a time scale."""
        period: int = self.configuration["Period"]
        return period

    @property
    def statistic(self) -> str:
        """Statistic or ExtendedStatistic."""
        statistic: str = self.configuration.get("Statistic") or self.configuration["ExtendedStatistic"]
        return statistic

    def actions(self, state: State) -> list[str]:
        """Return the ARNs of what the beginning of `state` invokes; none while actions are disabled."""
        actions: list[str] = self.configuration[ACTION_LISTS[state]] if self.configuration["ActionsEnabled"] else []
        return actions


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryItem:
    alarm: str
    at: float
    """Seconds since the epoch."""
    type: HistoryType
    summary: str
    data: str
    """JSON, as DescribeAlarmHistory shows it."""


def _default_missing(namespace: str) -> MissingData:
    return "ignore" if namespace == "AWS/DynamoDB" else "missing"


def new_alarm(arn: str, configuration: Configuration, now: float) -> Alarm:
    """Return an alarm that is created now."""
    return Alarm(
        name=configuration["AlarmName"],
        arn=arn,
        configuration=configuration,
        configured_at=now,
        created_at=now,
        updated_at=now,
        transitioned_at=now,
    )
