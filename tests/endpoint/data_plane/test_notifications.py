from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError, ParamValidationError

from endpoint.backend.backend import Backend
from endpoint.backend.clients import is_refusal
from endpoint.cloudwatch.metrics import Metrics
from endpoint.data_plane.notifications import MAX_INCLUDED_BYTES, Notifications
from endpoint.settings import Settings
from endpoint.state import catalog, queue
from endpoint.state.catalog import Catalog
from endpoint.state.database import Database
from endpoint.state.outbox import Notification, Outbox
from endpoint.state.queue import Job, Outcome
from testing.endpoint.cut_line import ACCOUNT, REGION, Line, a_backend, running, until

_numbers = itertools.count()

SUCCESS, ERROR = (f"arn:aws:sns:{REGION}:{ACCOUNT}:{name}" for name in ("success", "error"))
JOB = Job(
    seq=1,
    id="2f4dcf85",
    endpoint="e",
    variant="AllTraffic",
    inference_id="8a80ed4e",
    input_location="s3://in/put",
    body=None,
    content_type="application/json",
    accept="text/plain",
    custom_attributes="token=ß",
    timeout_s=900,
    accepted_at=1684812189.588,
    expires_at=1684900000.0,
    output_location="s3://out/2f4dcf85.out",
    failure_location="s3://failures/2f4dcf85-error.out",
    output_config="{}",
    fence=1,
    leased_at=1684812190.0,
)
PLAIN: dict[str, Any] = {"accept": None, "content_type": None, "custom_attributes": None}
DONE = Outcome(kind="completed", content_type="text/plain", file="answer")
REASON = (
    "ClientError: Received client error (400) from model. See the SageMaker Endpoint logs in your account for more"
    " information."
)
FAILED = Outcome(kind="client_error", reason=REASON, content_type="application/json", file="answer")


def config(*include: str, success: str | None = SUCCESS, error: str | None = ERROR) -> dict[str, Any]:
    topics = {"SuccessTopic": success, "ErrorTopic": error, "IncludeInferenceResponseIn": list(include)}
    to = {name: value for name, value in topics.items() if value}
    return {
        "ProductionVariants": [{"VariantName": "AllTraffic", "ModelName": "m"}],
        "AsyncInferenceConfig": {"OutputConfig": {"S3OutputPath": "s3://out/", "NotificationConfig": to}},
    }


class StubMetrics(Metrics):
    def __init__(self) -> None:
        self.counted: list[tuple[str, str, str]] = []

    def count(self, endpoint: str, variant: str, name: str, value: float = 1.0) -> None:
        self.counted.append((endpoint, variant, name))


class World:
    """Notifications on a database of their own."""

    def __init__(self, directory: Path, line: Any = None, **settings: Any) -> None:
        self.database = Database(directory / "db", catalog.SCHEMA, queue.SCHEMA)
        self.catalog = Catalog(self.database)
        self.outbox = Outbox(self.database)
        self.metrics = StubMetrics()
        values = Settings(**{"data_dir": directory, "region": REGION, "account": ACCOUNT} | settings)
        self.notifications = Notifications(values, self.outbox, self.catalog, line, self.metrics)

    async def put(self, topic: str, *messages: str) -> None:
        await self.outbox.put(
            [Notification(endpoint="e", variant="v", topic=topic, message=message) for message in messages]
        )
        self.notifications.wake()

    async def waiting(self) -> list[tuple[str, str]]:
        rows = await self.database.read(lambda db: db.execute("SELECT * FROM outbox ORDER BY seq").fetchall())
        return [(row["topic"], row["message"]) for row in rows]

    async def until_empty(self) -> None:
        async with asyncio.timeout(60):
            while await self.waiting():
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def a_world(directory: Path, line: Any = None, **settings: Any) -> AsyncIterator[World]:
    world = World(directory, line, **settings)
    try:
        yield world
    finally:
        world.database.close()


def with_config(job: Job, config: dict[str, Any]) -> Job:
    return replace(job, output_config=json.dumps(config["AsyncInferenceConfig"]["OutputConfig"]))


def message_of(
    directory: Path, job: Job, outcome: Outcome, config: dict[str, Any], answer: bytes | None = None, **settings: Any
) -> dict[str, Any] | None:
    async def run() -> dict[str, Any] | None:
        async with a_world(directory, **settings) as world:
            notification = world.notifications.make(with_config(job, config), outcome, answer)
            if notification is None:
                return None
            assert notification.topic == (SUCCESS if outcome.succeeded else ERROR)
            assert (notification.endpoint, notification.variant) == (job.endpoint, job.variant)
            message: dict[str, Any] = json.loads(notification.message)
            return message

    return asyncio.run(run())


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with a_backend(tmp_path_factory.mktemp("backend")) as backend:
        yield backend


class Subscriber:
    """An SQS queue that gets the messages of a topic unchanged."""

    def __init__(self, backend: Backend) -> None:
        name = f"n{next(_numbers)}"
        self._sqs = backend.client("sqs")
        self._queue = self._sqs.create_queue(QueueName=name)["QueueUrl"]
        self.topic: str = backend.client("sns").create_topic(Name=name)["TopicArn"]
        backend.client("sns").subscribe(
            TopicArn=self.topic,
            Protocol="sqs",
            Endpoint=f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}",
            Attributes={"RawMessageDelivery": "true"},
        )

    def receive(self) -> list[str]:
        """Return all messages that are there now, in order."""
        found: list[str] = []
        while messages := self._sqs.receive_message(QueueUrl=self._queue, MaxNumberOfMessages=10).get("Messages"):
            found += [message["Body"] for message in messages]
        return found


def test_success_message_has_sagemakers_fields_in_order(tmp_path: Path) -> None:
    before = time.time()
    message = message_of(tmp_path, JOB, DONE, config("SUCCESS_NOTIFICATION_TOPIC"), b"four")
    assert message is not None
    at = datetime.fromisoformat(message["eventTime"]).timestamp()
    assert before - 0.001 <= at <= time.time() and len(message["eventTime"]) == len("2023-05-23T03:23:21.814Z")
    assert json.dumps(message) == json.dumps(
        {
            "awsRegion": REGION,
            "eventTime": message["eventTime"],
            "receivedTime": "2023-05-23T03:23:09.588Z",
            "invocationStatus": "Completed",
            "requestParameters": {
                "accept": "text/plain",
                "contentType": "application/json",
                "customAttributes": "token=ß",
                "endpointName": "e",
                "inputLocation": "s3://in/put",
            },
            "responseParameters": {"contentType": "text/plain", "outputLocation": "s3://out/2f4dcf85.out"},
            "responseBody": {
                "content": base64.b64encode(b"four").decode(),
                "message": "Check S3 path location(if configured) or Cloudwatch for additional details.",
                "encoding": "BASE64",
            },
            "inferenceId": "8a80ed4e",
            "eventVersion": "1.0",
            "eventSource": "aws:sagemaker",
            "eventName": "InferenceResult",
        }
    )


def test_failure_message_has_sagemakers_fields_in_order(tmp_path: Path) -> None:
    message = message_of(tmp_path, replace(JOB, **PLAIN), FAILED, config("SUCCESS_NOTIFICATION_TOPIC"), b"no")
    assert message is not None
    assert json.dumps(message) == json.dumps(
        {
            "awsRegion": REGION,
            "eventTime": message["eventTime"],
            "receivedTime": "2023-05-23T03:23:09.588Z",
            "invocationStatus": "Failed",
            "failureReason": REASON,
            "requestParameters": {"endpointName": "e", "inputLocation": "s3://in/put"},
            "inferenceId": "8a80ed4e",
            "eventVersion": "1.0",
            "eventSource": "aws:sagemaker",
            "eventName": "InferenceResult",
        }
    )


def test_inline_body_has_no_input_location(tmp_path: Path) -> None:
    message = message_of(tmp_path, replace(JOB, **PLAIN, input_location=None, body=b"in"), DONE, config())
    assert message is not None and message["requestParameters"] == {"endpointName": "e"}


def test_failure_message_includes_answer_if_configured(tmp_path: Path) -> None:
    message = message_of(tmp_path, JOB, FAILED, config("ERROR_NOTIFICATION_TOPIC"), b"no")
    assert message is not None and "responseParameters" not in message
    assert base64.b64decode(message["responseBody"]["content"]) == b"no"
    wanted = {"contentType": "application/json", "outputLocation": "s3://failures/2f4dcf85-error.out"}
    message = message_of(tmp_path, JOB, FAILED, config(), failed_notice_location=True)
    assert message is not None and message["responseParameters"] == wanted and "responseBody" not in message
    message = message_of(tmp_path, replace(JOB, failure_location=None), FAILED, config(), failed_notice_location=True)
    assert message is not None and "responseParameters" not in message


@pytest.mark.parametrize(("size", "is_there"), [(0, True), (MAX_INCLUDED_BYTES, True), (MAX_INCLUDED_BYTES + 1, False)])
def test_notification_includes_answers_up_to_128_kb(tmp_path: Path, size: int, is_there: bool) -> None:
    message = message_of(tmp_path, JOB, DONE, config("SUCCESS_NOTIFICATION_TOPIC"), b"x" * size)
    assert message is not None and ("responseBody" in message) is is_there


def test_answer_is_wanted_only_where_configured(tmp_path: Path) -> None:
    async def run() -> None:
        async with a_world(tmp_path) as world:

            def wants(outcome: Outcome, config: dict[str, Any]) -> bool:
                return world.notifications.wants_answer(with_config(JOB, config), outcome)

            assert wants(DONE, config("SUCCESS_NOTIFICATION_TOPIC"))
            assert wants(FAILED, config("ERROR_NOTIFICATION_TOPIC"))
            assert not wants(DONE, config("ERROR_NOTIFICATION_TOPIC")) and not wants(FAILED, config())
            assert not wants(DONE, config("SUCCESS_NOTIFICATION_TOPIC", success=None))

    asyncio.run(run())


def test_no_topic_means_no_notification(tmp_path: Path) -> None:
    assert message_of(tmp_path, JOB, DONE, config(success=None)) is None
    assert message_of(tmp_path, JOB, FAILED, config(error=None)) is None
    assert message_of(tmp_path, JOB, DONE, {"AsyncInferenceConfig": {"OutputConfig": {}}}) is None


def test_notifications_arrive_unchanged_in_order(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        one, other = Subscriber(backend), Subscriber(backend)
        async with a_world(tmp_path, backend) as world, running(world.notifications.run):
            for number in range(20):
                await world.put(one.topic, f"one {number}")
                await world.put(other.topic, f"öther {number}")
            await world.until_empty()
            assert await asyncio.to_thread(one.receive) == [f"one {number}" for number in range(20)]
            assert await asyncio.to_thread(other.receive) == [f"öther {number}" for number in range(20)]
            assert world.metrics.counted == []

    asyncio.run(run())


def test_the_largest_notice_arrives_whole(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        subscriber = Subscriber(backend)
        to = config("SUCCESS_NOTIFICATION_TOPIC", success=subscriber.topic)
        async with a_world(tmp_path, backend) as world, running(world.notifications.run):
            answer = b"\xff" * MAX_INCLUDED_BYTES
            notification = world.notifications.make(with_config(JOB, to), DONE, answer)
            assert notification is not None
            await world.put(notification.topic, notification.message)
            await world.until_empty()
            assert await asyncio.to_thread(subscriber.receive) == [notification.message]

    asyncio.run(run())


def test_earlier_gateways_notifications_are_published(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        subscriber = Subscriber(backend)
        async with a_world(tmp_path, backend) as world:
            await world.put(subscriber.topic, "left")
        async with a_world(tmp_path, backend) as world, running(world.notifications.run):
            await world.until_empty()
        assert await asyncio.to_thread(subscriber.receive) == ["left"]

    asyncio.run(run())


def test_missing_topic_does_not_block_others(
    tmp_path: Path, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        subscriber = Subscriber(backend)
        async with a_world(tmp_path, backend) as world, running(world.notifications.run):
            await world.put(f"arn:aws:sns:{REGION}:{ACCOUNT}:absent", "lost")
            await world.put(subscriber.topic, "arrives")
            await world.until_empty()
            assert await asyncio.to_thread(subscriber.receive) == ["arrives"]
            assert world.metrics.counted == [("e", "v", "NotificationFailures")]

    asyncio.run(run())
    (record,) = [record for record in caplog.records if record.name == "endpoint.data_plane.notifications"]
    assert "absent" in record.message and "lost" not in record.message


def test_notifications_wait_for_dead_backend(
    tmp_path: Path, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        subscriber, line = Subscriber(backend), Line(backend, is_cut=True)
        async with a_world(tmp_path, line) as world, running(world.notifications.run):
            await world.put(subscriber.topic, "one", "two")
            await until(lambda: line.attempts >= 2)
            assert [message for _, message in await world.waiting()] == ["one", "two"]
            line.is_cut = False
            await world.until_empty()
            assert await asyncio.to_thread(subscriber.receive) == ["one", "two"]
            assert world.metrics.counted == []

    asyncio.run(run())
    assert [record.levelno for record in caplog.records if record.name == "endpoint.data_plane.notifications"] == [
        logging.WARNING
    ]


def test_end_does_not_wait_for_backend(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        line = Line(backend, is_cut=True)
        async with a_world(tmp_path, line) as world:
            async with asyncio.timeout(20), running(world.notifications.run):
                await world.put(SUCCESS, "one")
                await until(lambda: line.attempts)
            assert await world.waiting() == [(SUCCESS, "one")]

    asyncio.run(run())


async def make_endpoint(world: World, name: str, *configs: dict[str, Any]) -> None:
    """Create an endpoint; the second config, if there is one, is its target."""
    names = [f"{name}-{number}" for number in range(len(configs))]
    create = world.catalog.create
    await create("model", "m", "arn:m", {"PrimaryContainer": {}}, {}, {})
    for config_name, request in zip(names, configs, strict=True):
        await create("endpoint-config", config_name, f"arn:{config_name}", request, {}, {})
    state = {
        "status": "InService",
        "failure_reason": None,
        "config_name": names[0],
        "target_config_name": names[1] if len(names) > 1 else None,
        "desired": 1,
        "current": 1,
    }
    await create("endpoint", name, f"arn:{name}", {}, {}, state)


TEST = '{"eventVersion":"1.0","eventSource":"aws:sagemaker","eventName":"TestNotification"}'


def test_notification_goes_to_both_topics(tmp_path: Path, backend: Backend) -> None:
    async def run() -> None:
        success, error = Subscriber(backend), Subscriber(backend)
        async with a_world(tmp_path, backend) as world, running(world.notifications.run):
            await make_endpoint(world, "e", config(success=success.topic, error=error.topic))
            await world.notifications.send_test("e")
            await world.until_empty()
            assert await asyncio.to_thread(success.receive) == [TEST] == await asyncio.to_thread(error.receive)

    asyncio.run(run())


def test_notification_goes_to_target_configs_topics(tmp_path: Path) -> None:
    async def run() -> None:
        async with a_world(tmp_path) as world:
            await make_endpoint(world, "e", config(), config(success="arn:both", error="arn:both"))
            await world.notifications.send_test("e")
            assert await world.waiting() == [("arn:both", TEST)]

    asyncio.run(run())


def test_endpoint_without_topics_gets_no_test(tmp_path: Path) -> None:
    async def run() -> None:
        async with a_world(tmp_path) as world:
            await make_endpoint(world, "e", {"ProductionVariants": [{"VariantName": "v", "ModelName": "m"}]})
            await world.notifications.send_test("e")
            await world.notifications.send_test("absent")
            assert await world.waiting() == []

    asyncio.run(run())


def refused(status: int, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "Publish",
    )


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (refused(404, "NotFound"), True),
        (refused(400, "InvalidParameter"), True),
        (refused(403, "AuthorizationError"), True),
        (ParamValidationError(report=""), True),
        (refused(400, "Throttling"), False),
        (refused(429, "TooManyRequestsException"), False),
        (refused(500, "InternalError"), False),
        (refused(503, "ServiceUnavailable"), False),
        (ConnectTimeoutError(endpoint_url=""), False),
        (OSError(), False),
    ],
)
def test_only_a_refusal_is_for_good(error: Exception, is_final: bool) -> None:
    assert is_refusal(error) is is_final
