"""CloudWatch's requests: alarms are ours in any protocol, data that are put are recorded, the rest is the backend's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.responses import Response

from endpoint.aws.errors import AwsError
from endpoint.aws.service import Call, Service
from endpoint.gateway.request import Forward, Request

ALARM_OPERATIONS = frozenset(
    {
        *("PutMetricAlarm", "PutCompositeAlarm", "PutLogAlarm"),
        *("DescribeAlarms", "DescribeAlarmsForMetric", "DescribeAlarmHistory", "DescribeAlarmContributors"),
        *("DeleteAlarms", "SetAlarmState", "EnableAlarmActions", "DisableAlarmActions"),
        *("PutAnomalyDetector", "DescribeAnomalyDetectors", "DeleteAnomalyDetector"),
        *("PutAlarmMuteRule", "GetAlarmMuteRule", "ListAlarmMuteRules", "DeleteAlarmMuteRule"),
    }
)
"""Operations that never reach the backend, which would keep a second set of alarms."""
PUT = "PutMetricData"
_TAG_OPERATIONS = frozenset({"TagResource", "UntagResource", "ListTagsForResource"})

logger = logging.getLogger(__name__)

Record = Callable[[dict[str, Any]], None]
"""Function that gets PutMetricData's parameters once the backend has taken them."""


class Monitoring:
    """The handler of requests for CloudWatch."""

    def __init__(self, call: Call, record: Record) -> None:
        """`call` does the operations of alarms."""
        self._call = call
        self._record = record
        self._service = Service("cloudwatch")

    async def handle(self, request: Request) -> Response | Forward:
        """Answer a request, or have it forwarded as it is. Raises ClientGone, BodyTooLarge."""
        whole = await request.whole()
        wire = self._service.wire(whole.headers)
        try:
            name, _ = wire.operation(whole)
            if name in ALARM_OPERATIONS:
                return await self._service.respond(self._call, whole)
            if name in _TAG_OPERATIONS:
                _, parameters = self._service.read(whole)
                if ":alarm:" in parameters["ResourceARN"]:
                    return await self._service.respond(self._call, whole)
            if name == PUT:
                _, parameters = self._service.read(whole)
                return Forward(partial(self._record_taken, parameters))
        except AwsError as error:
            return wire.error_response(error, whole.headers)
        return Forward()

    def _record_taken(self, parameters: dict[str, Any]) -> None:
        try:
            self._record(parameters)
        except Exception:  # the backend has them, so the client must not send them again
            logger.exception("metric data were not recorded for alarms")
