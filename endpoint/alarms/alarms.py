"""CloudWatch's operations on metric alarms, over parsed parameters."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from endpoint.alarms.alarm import ACTION_LISTS, Alarm
from endpoint.alarms.store import AlarmStore
from endpoint.aws.regions import partition_of
from endpoint.aws.service import not_implemented
from endpoint.settings import Settings

Parameters = dict[str, Any]
Result = dict[str, Any]


class Alarms:
    """The operations, by AWS's names in `call`. They raise AwsError. Times are seconds since the epoch."""

    def __init__(self, settings: Settings, store: AlarmStore, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._operations: dict[str, Callable[[Parameters], Awaitable[Result]]] = {
            "PutMetricAlarm": self._put_metric_alarm,
            "DeleteAlarms": self._delete_alarms,
        }

    async def call(self, operation: str, parameters: Parameters) -> Result:
        """Call an operation by its name. Raises AwsError."""
        if operation not in self._operations:
            raise not_implemented(operation)
        return await self._operations[operation](parameters)

    async def put(self, parameters: Parameters) -> str:
        """Do as PutMetricAlarm, and return the alarm's ARN."""
        name = parameters["AlarmName"]
        configuration = {"ActionsEnabled": True} | {actions: [] for actions in ACTION_LISTS.values()} | parameters
        tags = {tag["Key"]: tag["Value"] for tag in configuration.pop("Tags", [])}
        async with self._store.lock:
            now = self._clock()
            old = (await self._store.all()).get(name)
            arn = self.arn(name)
            alarm = Alarm(
                name=name,
                arn=arn,
                configuration=configuration,
                configured_at=now,
                created_at=now,
                updated_at=now,
                transitioned_at=now,
            )
            await self._store.put([alarm], tags={name: tags} if old is None else {})
        return arn

    async def delete(self, names: Sequence[str]) -> None:
        """Do as DeleteAlarms: names of no alarm are no error."""
        async with self._store.lock:
            await self._store.delete(names)

    def arn(self, name: str) -> str:
        """Return the ARN of an alarm, whether or not there is one."""
        region = self._settings.region
        return f"arn:{partition_of(region)}:cloudwatch:{region}:{self._settings.account}:alarm:{name}"

    async def _put_metric_alarm(self, parameters: Parameters) -> Result:
        await self.put(parameters)
        return {}

    async def _delete_alarms(self, parameters: Parameters) -> Result:
        await self.delete(parameters["AlarmNames"])
        return {}
