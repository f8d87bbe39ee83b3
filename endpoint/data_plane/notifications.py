"""What became of an invocation, told to the SNS topics of its endpoint's config, in SageMaker's words.

They wait in the table `outbox`, where the transaction that ends a job puts them. Each is published at least once, in
order per topic, however long the backend is down. A topic that doesn't exist, or refuses, gets nothing and is
counted in NotificationFailures; the invocation stays what it was.

AWS documents no `inputLocation` of a request whose body came inline: here such a notice has none, as it has no `accept`
of a caller that sent none. Whether a failure's notice has `responseParameters` is `Settings.failed_notice_location`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import sqlite3
import time
from datetime import UTC, datetime
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from endpoint.backend.clients import Clients, is_refusal
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog, NotFound
from endpoint.state.database import Database
from endpoint.state.queue import Job, Notification, Outcome, put_notification

MOST_ANSWER_BYTES = 128 * 1024
"""Of an output that is in its notice."""

_EVENT = {"eventVersion": "1.0", "eventSource": "aws:sagemaker"}
_TEST = _EVENT | {"eventName": "TestNotification"}
_BODY_MESSAGE = "Check S3 path location(if configured) or Cloudwatch for additional details."

_AT_ONCE = 4
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 30.0

_LOG = logging.getLogger(__name__)


class Metrics(Protocol):
    def count(self, endpoint: str, variant: str, name: str, value: float = 1.0) -> None: ...


class Notifications:
    """Owns what is in the outbox, once it is there."""

    def __init__(
        self, settings: Settings, database: Database, catalog: Catalog, backend: Clients, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._database = database
        self._catalog = catalog
        self._backend = backend
        self._metrics = metrics
        self._woken = asyncio.Event()
        self._ending = asyncio.Event()
        self._few = asyncio.Semaphore(_AT_ONCE)
        self._topics: dict[str, asyncio.Task[None]] = {}

    def wants_answer(self, outcome: Outcome, config: dict[str, Any]) -> bool:
        """Whether `of` would use the output's bytes, if they aren't too many."""
        wanted = "SUCCESS_NOTIFICATION_TOPIC" if outcome.succeeded else "ERROR_NOTIFICATION_TOPIC"
        included = _notification_config(config).get("IncludeInferenceResponseIn") or []
        return _topic(outcome, config) is not None and wanted in included

    def of(self, job: Job, outcome: Outcome, config: dict[str, Any], *, answer: bytes | None) -> Notification | None:
        """For the topic of the endpoint config that wants to know; None if there is none.

        `answer`: the bytes of the object that says what became of the job.
        """
        topic = _topic(outcome, config)
        if topic is None:
            return None
        message: dict[str, Any] = {
            "awsRegion": self._settings.region,
            "eventTime": _iso(time.time()),
            "receivedTime": _iso(job.accepted_at),
            "invocationStatus": "Completed" if outcome.succeeded else "Failed",
            "failureReason": None if outcome.succeeded else outcome.reason,
            "requestParameters": _given(
                accept=job.accept,
                contentType=job.content_type,
                customAttributes=job.custom_attributes,
                endpointName=job.endpoint,
                inputLocation=job.input_location,
            ),
            "responseParameters": self._response_parameters(job, outcome),
            "responseBody": self._response_body(outcome, config, answer),
            "inferenceId": job.inference_id,
            **_EVENT,
            "eventName": "InferenceResult",
        }
        return Notification(topic=topic, message=_compact(_given(**message)))

    async def test(self, endpoint: str) -> None:
        """To the topics of the config that serves, or shall, as on each change of an endpoint."""
        try:
            found = await self._catalog.endpoint(endpoint)
            deployment = await self._catalog.deployment(found, found.target_config_name or found.config_name)
        except NotFound:
            return
        to = _notification_config(deployment.config)
        topics = dict.fromkeys(topic for topic in (to.get("SuccessTopic"), to.get("ErrorTopic")) if topic)
        if not topics:
            return

        def change(db: sqlite3.Connection) -> None:
            for topic in topics:
                notice = Notification(topic=topic, message=_compact(_TEST))
                put_notification(db, endpoint, deployment.variant["VariantName"], notice)

        await self._database.write(change)
        self.wake()

    def wake(self) -> None:
        """Something is in the outbox."""
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled; never raises. What is being published then is seen to its end."""
        self._ending.clear()
        try:
            while True:
                self._woken.clear()
                await self._start()
                await self._woken.wait()
        finally:
            self._ending.set()
            await asyncio.gather(*self._topics.values(), return_exceptions=True)

    async def _start(self) -> None:
        try:
            rows = await self._database.read(lambda db: db.execute("SELECT DISTINCT topic FROM outbox").fetchall())
        except sqlite3.Error:
            _LOG.exception("The outbox could not be read")
            asyncio.get_running_loop().call_later(_LAST_RETRY_S, self.wake)
            return
        for row in rows:
            if (topic := row["topic"]) not in self._topics:
                self._topics[topic] = asyncio.create_task(self._empty(topic))

    async def _empty(self, topic: str) -> None:
        """Publishes what waits for that topic, in order."""
        retry_s = _FIRST_RETRY_S
        try:
            while not self._ending.is_set():
                try:
                    if not await self._publish_first(topic):
                        return
                except Exception as error:
                    if retry_s == _FIRST_RETRY_S:
                        is_known = isinstance(error, BotoCoreError | ClientError)
                        _LOG.warning("Notifications for %s wait: %s", topic, error, exc_info=not is_known)
                    await self._pause(retry_s)
                    retry_s = min(2 * retry_s, _LAST_RETRY_S)
                else:
                    retry_s = _FIRST_RETRY_S
        finally:
            del self._topics[topic]
            self.wake()  # one may have come since the last look

    async def _publish_first(self, topic: str) -> bool:
        """Whether there was one. Raises what may be over next time."""
        row = await self._database.read(
            lambda db: db.execute("SELECT * FROM outbox WHERE topic = ? ORDER BY seq LIMIT 1", (topic,)).fetchone()
        )
        if row is None:
            return False
        try:
            async with self._few:
                await asyncio.to_thread(self._publish, topic, row["message"])
        except (BotoCoreError, ClientError) as error:
            if not is_refusal(error):
                raise
            _LOG.warning("A notice of endpoint %s is dropped, %s does not take it: %s", row["endpoint"], topic, error)
            self._metrics.count(row["endpoint"], row["variant"], "NotificationFailures")
        await self._database.write(lambda db: db.execute("DELETE FROM outbox WHERE seq = ?", (row["seq"],)))
        return True

    def _publish(self, topic: str, message: str) -> None:
        self._backend.client("sns").publish(TopicArn=topic, Message=message)

    async def _pause(self, for_s: float) -> None:
        try:
            await asyncio.wait_for(self._ending.wait(), for_s)
        except TimeoutError:
            return

    def _response_parameters(self, job: Job, outcome: Outcome) -> dict[str, Any] | None:
        if outcome.succeeded:
            return _given(contentType=outcome.content_type, outputLocation=job.output_location)
        if job.failure_location is None or not self._settings.failed_notice_location:
            return None
        return _given(contentType=outcome.content_type, outputLocation=job.failure_location)

    def _response_body(self, outcome: Outcome, config: dict[str, Any], answer: bytes | None) -> dict[str, Any] | None:
        if answer is None or len(answer) > MOST_ANSWER_BYTES or not self.wants_answer(outcome, config):
            return None
        content = base64.b64encode(answer).decode()
        return {"content": content, "message": _BODY_MESSAGE, "encoding": "BASE64"}


def _notification_config(config: dict[str, Any]) -> dict[str, Any]:
    asynchronous = config.get("AsyncInferenceConfig") or {}
    return (asynchronous.get("OutputConfig") or {}).get("NotificationConfig") or {}


def _topic(outcome: Outcome, config: dict[str, Any]) -> str | None:
    topic: str | None = _notification_config(config).get("SuccessTopic" if outcome.succeeded else "ErrorTopic")
    return topic or None


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _compact(message: dict[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)
