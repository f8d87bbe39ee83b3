"""CloudWatch's operations on metric alarms, over parsed parameters.

There are no composite alarms, log alarms, alarm contributors, mute rules and anomaly detectors: what makes or asks for
them is refused by name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from endpoint.alarms.actions import Actions, invocations, recent_values
from endpoint.alarms.alarm import ACTION_LISTS, Alarm, new_alarm
from endpoint.alarms.history import configured, transitioned
from endpoint.alarms.notices import notices
from endpoint.alarms.pages import cut, read_token
from endpoint.alarms.series import metric_of
from endpoint.alarms.store import HISTORY_S, AlarmStore
from endpoint.alarms.validation import MAX_TAGS, invalid, validate_alarm, validate_tags
from endpoint.aws.errors import AwsError, not_implemented
from endpoint.aws.page_tokens import make_token
from endpoint.aws.regions import partition_of
from endpoint.settings import Settings

Parameters = dict[str, Any]
Result = dict[str, Any]

MAX_ALARMS = 10_000
"""Alarms of one data directory: AWS's quota can be raised to more."""

_PAGE = 50
_HISTORY_PAGE = 100


class Alarms:
    """The operations, by AWS's names in `call`. They raise AwsError. Times are seconds since the epoch."""

    def __init__(
        self,
        settings: Settings,
        store: AlarmStore,
        actions: Actions,
        wake_sender: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Call `wake_sender` when the store has a new notice."""
        self._settings = settings
        self._store = store
        self._actions = actions
        self._wake_sender = wake_sender
        self._clock = clock
        self._operations: dict[str, Callable[[Parameters], Awaitable[Result]]] = {
            "PutMetricAlarm": self._put_metric_alarm,
            "DeleteAlarms": self._delete_alarms,
            "DescribeAlarms": self._describe_alarms,
            "DescribeAlarmsForMetric": self._describe_alarms_for_metric,
            "DescribeAlarmHistory": self._describe_alarm_history,
            "SetAlarmState": self._set_alarm_state,
            "EnableAlarmActions": partial(self._switch_actions, True),
            "DisableAlarmActions": partial(self._switch_actions, False),
            "TagResource": self._tag_resource,
            "UntagResource": self._untag_resource,
            "ListTagsForResource": self._list_tags,
        }

    async def call(self, operation: str, parameters: Parameters) -> Result:
        """Call an operation by its name. Raises AwsError."""
        if operation not in self._operations:
            raise not_implemented(operation)
        return await self._operations[operation](parameters)

    async def put(self, parameters: Parameters) -> str:
        """Do as PutMetricAlarm, and return the alarm's ARN. Raises AwsError."""
        validate_alarm(parameters, self._settings.region)
        tags = {tag["Key"]: tag["Value"] for tag in parameters.get("Tags", [])}
        validate_tags(tags)
        if len(tags) > MAX_TAGS:
            raise invalid(f"The resultant tag set must not have more than {MAX_TAGS} user tags.")
        name = parameters["AlarmName"]
        configuration: Parameters = {"ActionsEnabled": True} | {actions: [] for actions in ACTION_LISTS.values()}
        configuration |= parameters
        configuration.pop("Tags", None)
        async with self._store.lock:
            now = self._clock()
            alarms = await self._store.all()
            old = alarms.get(name)
            if old is None:
                if len(alarms) >= MAX_ALARMS:
                    raise AwsError("LimitExceeded", f"There can be at most {MAX_ALARMS} alarms.")
                new = new_alarm(self.arn(name), configuration, now)
                await self._store.put([new], [configured(None, new, now)], tags={name: tags})
            elif old.configuration != configuration:
                await self._configure([(old, configuration)], now)
        return self.arn(name)

    async def delete(self, names: Sequence[str]) -> None:
        """Do as DeleteAlarms: names of no alarm are no error."""
        async with self._store.lock:
            alarms = await self._store.all()
            known = [alarms[name] for name in dict.fromkeys(names) if name in alarms]
            if known:
                now = self._clock()
                gone = [alarm.name for alarm in known]
                await self._store.delete(gone, [configured(alarm, None, now) for alarm in known])
                self._actions.forget(gone)

    def arn(self, name: str) -> str:
        """Return the ARN of an alarm, whether or not there is one."""
        region = self._settings.region
        return f"arn:{partition_of(region)}:cloudwatch:{region}:{self._settings.account}:alarm:{name}"

    # What makes and changes alarms

    async def _put_metric_alarm(self, parameters: Parameters) -> Result:
        await self.put(parameters)
        return {}

    async def _delete_alarms(self, parameters: Parameters) -> Result:
        await self.delete(parameters["AlarmNames"])
        return {}

    async def _switch_actions(self, is_enabled: bool, parameters: Parameters) -> Result:
        async with self._store.lock:
            alarms = await self._store.all()
            known = [alarms[name] for name in dict.fromkeys(parameters["AlarmNames"]) if name in alarms]
            changes = [
                (alarm, alarm.configuration | {"ActionsEnabled": is_enabled})
                for alarm in known
                if alarm.configuration["ActionsEnabled"] != is_enabled
            ]
            if changes:
                await self._configure(changes, self._clock())
        return {}

    async def _configure(self, changes: Sequence[tuple[Alarm, dict[str, Any]]], now: float) -> None:
        """Give alarms new configurations; they keep their states. The store's lock is held."""
        pairs = [(old, replace(old, configuration=new, configured_at=now)) for old, new in changes]
        await self._store.put([new for _, new in pairs], [configured(old, new, now) for old, new in pairs])

    async def _set_alarm_state(self, parameters: Parameters) -> Result:
        name, reason_data = parameters["AlarmName"], parameters.get("StateReasonData")
        try:
            json.loads(reason_data or "null", parse_constant=_refuse)
        except (ValueError, RecursionError):
            raise AwsError("InvalidFormat", "StateReasonData is not valid JSON.") from None
        async with self._store.lock:
            old = (await self._store.all()).get(name)
            if old is None:
                raise AwsError("ResourceNotFound", f"There is no alarm {name}.", 404)
            if old.state == parameters["StateValue"]:
                return {}
            now = self._clock()
            new = replace(
                old,
                state=parameters["StateValue"],
                reason=parameters["StateReason"],
                reason_data=reason_data or None,
                updated_at=now,
                transitioned_at=now,
            )
            told = notices(old, new, self._settings.region, self._settings.account)
            await self._store.put([new], [transitioned(old, new)], told)
        self._wake_sender()
        if new.state == "ALARM":
            await self._actions.run(invocations(new, recent_values(reason_data, now), now, is_first=True))
        return {}

    # What describes them

    async def _describe_alarms(self, parameters: Parameters) -> Result:
        relatives = parameters.keys() & {"ChildrenOfAlarmName", "ParentsOfAlarmName"}
        if (relatives and parameters.keys() - relatives - {"MaxRecords", "NextToken"}) or len(relatives) > 1:
            raise invalid(f"{min(relatives)} can be given with MaxRecords and NextToken only.")
        alarms = await self._store.all()
        names = parameters.get("AlarmNames")
        after = read_token(parameters["NextToken"], str)[0] if "NextToken" in parameters else ""
        found = [
            alarms[name]
            for name in sorted(alarms if names is None else alarms.keys() & set(names))
            if name > after and _is_wanted(alarms[name], parameters)
        ]
        if relatives or "MetricAlarm" not in parameters.get("AlarmTypes", ["MetricAlarm"]):
            found = []  # only composite alarms have children, and there are none
        shown, token = cut(found, parameters.get("MaxRecords", _PAGE), lambda alarm: make_token(alarm.name))
        described = [_describe(alarm) for alarm in shown]
        return {"CompositeAlarms": [], "MetricAlarms": described, "LogAlarms": [], "NextToken": token}

    async def _describe_alarms_for_metric(self, parameters: Parameters) -> Result:
        metric = metric_of(parameters)
        wanted = {
            name: parameters[name]
            for name in ("Statistic", "ExtendedStatistic", "Period", "Unit")
            if name in parameters
        }
        found = [
            _describe(alarm)
            for _, alarm in sorted((await self._store.all()).items())
            if metric_of(alarm.configuration) == metric
            and all(alarm.configuration.get(name) == value for name, value in wanted.items())
        ]
        return {"MetricAlarms": found}

    async def _describe_alarm_history(self, parameters: Parameters) -> Result:
        if "AlarmContributorId" in parameters:
            raise invalid("AlarmContributorId is not supported by the local endpoint: its alarms have no contributors.")
        if "MetricAlarm" not in parameters.get("AlarmTypes", ["MetricAlarm"]):
            return {"AlarmHistoryItems": []}
        size = parameters.get("MaxRecords", _HISTORY_PAGE)
        after = read_token(parameters["NextToken"], float, int) if "NextToken" in parameters else None
        now = self._clock()
        rows = await self._store.history(
            alarm=parameters.get("AlarmName"),
            item_type=parameters.get("HistoryItemType"),
            since=max(parameters.get("StartDate", 0.0), now - HISTORY_S),
            until=parameters.get("EndDate", now),
            descends=parameters.get("ScanBy") != "TimestampAscending",
            after=(after[0], after[1]) if after else None,
            limit=size + 1,
        )
        shown, token = cut(rows, size, lambda row: make_token(row[1].at, row[0]))
        items = [
            {
                "AlarmName": item.alarm,
                "AlarmType": "MetricAlarm",
                "Timestamp": round(item.at, 3),
                "HistoryItemType": item.type,
                "HistorySummary": item.summary,
                "HistoryData": item.data,
            }
            for _, item in shown
        ]
        return {"AlarmHistoryItems": items, "NextToken": token}

    # Tags

    async def _tag_resource(self, parameters: Parameters) -> Result:
        tags = {tag["Key"]: tag["Value"] for tag in parameters["Tags"]}
        validate_tags(tags)
        if len(tags) > MAX_TAGS:
            raise AwsError("InvalidParameterValue", "tags are invalid.")
        async with self._store.lock:
            name = await self._name_of(parameters["ResourceARN"])
            if len(await self._store.tags(name) | tags) > MAX_TAGS:
                message = f"The resultant tag set must not have more than {MAX_TAGS} user tags."
                raise AwsError("InvalidParameterValue", message)
            await self._store.put_tags(name, tags)
        return {}

    async def _untag_resource(self, parameters: Parameters) -> Result:
        async with self._store.lock:
            await self._store.remove_tags(await self._name_of(parameters["ResourceARN"]), parameters["TagKeys"])
        return {}

    async def _list_tags(self, parameters: Parameters) -> Result:
        tags = await self._store.tags(await self._name_of(parameters["ResourceARN"]))
        return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}

    async def _name_of(self, arn: str) -> str:
        name = arn.split(":", 6)[-1]
        if arn != self.arn(name) or name not in await self._store.all():
            raise AwsError("ResourceNotFoundException", f"There is no alarm {arn}.", 404)
        return name


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _is_wanted(alarm: Alarm, parameters: Parameters) -> bool:
    prefix = parameters.get("ActionPrefix")
    actions = [action for name in ACTION_LISTS.values() for action in alarm.configuration[name]]
    return (
        alarm.name.startswith(parameters.get("AlarmNamePrefix", ""))
        and alarm.state == parameters.get("StateValue", alarm.state)
        and (prefix is None or any(action.startswith(prefix) for action in actions))
    )


def _describe(alarm: Alarm) -> Result:
    return alarm.configuration | {
        "Dimensions": alarm.configuration.get("Dimensions", []),
        "AlarmArn": alarm.arn,
        "AlarmConfigurationUpdatedTimestamp": round(alarm.configured_at, 3),
        "StateValue": alarm.state,
        "StateReason": alarm.reason,
        "StateReasonData": alarm.reason_data,
        "StateUpdatedTimestamp": round(alarm.updated_at, 3),
        "StateTransitionedTimestamp": round(alarm.transitioned_at, 3),
    }
