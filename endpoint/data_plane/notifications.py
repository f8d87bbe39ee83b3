"""Notifications to the SNS topics of an endpoint's config of what became of its invocations, in SageMaker's words.

They wait in the outbox, where the transaction that ends a job puts them. Each is published at least once, in order per
topic, however long the backend is down. A topic that doesn't exist, or refuses, gets nothing and is counted in
NotificationFailures; the invocation stays what it was.

AWS documents no `inputLocation` of a request whose body came inline: here such a notification has none, as it has no
`accept` of a caller that sent none. Whether a failure's has `responseParameters` is `Settings.failed_notice_location`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import sqlite3
import time
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from endpoint.backend.clients import Clients, is_refusal
from endpoint.backoff import Backoff
from endpoint.cloudwatch.metrics import Metrics
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog, NotFound
from endpoint.state.outbox import Notification, Outbox
from endpoint.state.queue import Job, Outcome

MAX_INCLUDED_BYTES = 128 * 1024
"""Bytes of an object that its notification includes."""

_EVENT = {"eventVersion": "1.0", "eventSource": "aws:sagemaker"}
_TEST = _EVENT | {"eventName": "TestNotification"}
_BODY_MESSAGE = "Check S3 path location(if configured) or Cloudwatch for additional details."

_MAX_PUBLISHING = 4
_RETRY_INTERVAL_S = 30.0

_LOG = logging.getLogger(__name__)


class Notifications:
    """Makes notifications, and publishes what is in the outbox."""

    def __init__(
        self, settings: Settings, outbox: Outbox, catalog: Catalog, backend: Clients, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._catalog = catalog
        self._backend = backend
        self._metrics = metrics
        self._woken = asyncio.Event()
        self._ending = asyncio.Event()
        self._publish_limit = asyncio.Semaphore(_MAX_PUBLISHING)
        self._publishers: dict[str, asyncio.Task[None]] = {}
        """Tasks that publish what waits for a topic, by its ARN."""

    def wants_answer(self, job: Job, outcome: Outcome) -> bool:
        """Return whether a notification includes the object's bytes, if they aren't too many."""
        wanted = "SUCCESS_NOTIFICATION_TOPIC" if outcome.succeeded else "ERROR_NOTIFICATION_TOPIC"
        included = _notification_config(job.output_options).get("IncludeInferenceResponseIn") or []
        return _topic(job, outcome) is not None and wanted in included

    def make(self, job: Job, outcome: Outcome, answer: bytes | None) -> Notification | None:
        """Return the notification of a job's end, or None if its endpoint's config has no topic for it.

        `answer` has the bytes of the output or the failure object, if they are wanted.
        """
        topic = _topic(job, outcome)
        if topic is None:
            return None
        response_parameters = response_body = None
        location = job.output_location if outcome.succeeded else job.failure_location
        if location is not None and (outcome.succeeded or self._settings.failed_notice_location):
            response_parameters = _without_none(contentType=outcome.content_type, outputLocation=location)
        if answer is not None and len(answer) <= MAX_INCLUDED_BYTES and self.wants_answer(job, outcome):
            content = base64.b64encode(answer).decode()
            response_body = {"content": content, "message": _BODY_MESSAGE, "encoding": "BASE64"}
        message: dict[str, Any] = {
            "awsRegion": self._settings.region,
            "eventTime": _iso(time.time()),
            "receivedTime": _iso(job.accepted_at),
            "invocationStatus": "Completed" if outcome.succeeded else "Failed",
            "failureReason": None if outcome.succeeded else outcome.reason,
            "requestParameters": _without_none(
                accept=job.accept,
                contentType=job.content_type,
                customAttributes=job.custom_attributes,
                endpointName=job.endpoint,
                inputLocation=job.input_location,
            ),
            "responseParameters": response_parameters,
            "responseBody": response_body,
            "inferenceId": job.inference_id,
            **_EVENT,
            "eventName": "InferenceResult",
        }
        message = _without_none(**message)
        return Notification(endpoint=job.endpoint, variant=job.variant, topic=topic, message=_compact(message))

    async def send_test(self, endpoint: str) -> None:
        """Notify the topics of the config that serves, or will serve, as AWS does on each change of an endpoint."""
        try:
            row = await self._catalog.endpoint(endpoint)
            deployment = await self._catalog.deployment(row, row.target_config_name or row.config_name)
        except NotFound:
            return
        output_options = (deployment.config.get("AsyncInferenceConfig") or {}).get("OutputConfig") or {}
        topics = _notification_config(output_options)
        variant = deployment.variant["VariantName"]
        await self._outbox.put(
            [
                Notification(endpoint=endpoint, variant=variant, topic=topic, message=_compact(_TEST))
                for topic in dict.fromkeys([topics.get("SuccessTopic"), topics.get("ErrorTopic")])
                if topic
            ]
        )
        self.wake()

    def wake(self) -> None:
        """Publish soon: something is in the outbox."""
        self._woken.set()

    async def run(self) -> None:
        """Publish until cancelled; what is being published then is seen to its end. Never raises."""
        self._ending.clear()
        try:
            while True:
                self._woken.clear()
                try:
                    for topic in set(await self._outbox.topics()) - self._publishers.keys():
                        self._publishers[topic] = asyncio.create_task(self._publish_all(topic))
                except sqlite3.Error:
                    _LOG.exception("The outbox could not be read")
                    asyncio.get_running_loop().call_later(_RETRY_INTERVAL_S, self.wake)
                await self._woken.wait()
        finally:
            self._ending.set()
            await asyncio.gather(*self._publishers.values(), return_exceptions=True)

    async def _publish_all(self, topic: str) -> None:
        """Publish what waits for a topic, in order."""
        backoff = Backoff()
        try:
            while not self._ending.is_set():
                try:
                    if not await self._publish_first(topic):
                        return
                    backoff.reset()
                except Exception as error:
                    if backoff.is_first:
                        is_known = isinstance(error, BotoCoreError | ClientError)
                        _LOG.warning("Notifications for %s wait: %s", topic, error, exc_info=not is_known)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._ending.wait(), backoff.next_s())
        finally:
            del self._publishers[topic]
            self.wake()  # one may have come since the last look

    async def _publish_first(self, topic: str) -> bool:
        """Publish the oldest notification for a topic, and return whether there was one. Raises what may pass."""
        if (first := await self._outbox.first(topic)) is None:
            return False
        seq, notification = first
        try:
            async with self._publish_limit:
                await asyncio.to_thread(
                    lambda: self._backend.client("sns").publish(TopicArn=topic, Message=notification.message)
                )
        except (BotoCoreError, ClientError) as error:
            if not is_refusal(error):
                raise
            endpoint = notification.endpoint
            _LOG.warning("A notification of endpoint %s is dropped, %s does not take it: %s", endpoint, topic, error)
            self._metrics.count(endpoint, notification.variant, "NotificationFailures")
        await self._outbox.remove(seq)
        return True


def _notification_config(output_options: dict[str, Any]) -> dict[str, Any]:
    return output_options.get("NotificationConfig") or {}


def _topic(job: Job, outcome: Outcome) -> str | None:
    topics = _notification_config(job.output_options)
    return topics.get("SuccessTopic" if outcome.succeeded else "ErrorTopic") or None


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _compact(message: dict[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)
