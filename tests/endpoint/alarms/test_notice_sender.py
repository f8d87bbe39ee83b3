from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from endpoint.alarms.notice_sender import NoticeSender
from endpoint.alarms.times import iso
from endpoint.backend.backend import Backend
from testing.endpoint.alarming import ACCOUNT, REGION, START, AlarmWorld, in_world
from testing.endpoint.cut_line import Line, a_backend, running, until


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with a_backend(tmp_path_factory.mktemp("backend")) as backend:
        yield backend


class Mailbox:
    """A topic with a queue behind it."""

    def __init__(self, backend: Backend, name: str) -> None:
        self._sqs = backend.client("sqs")
        sns = backend.client("sns")
        self.topic: str = sns.create_topic(Name=name)["TopicArn"]
        self._url = self._sqs.create_queue(QueueName=name)["QueueUrl"]
        arn = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        sns.subscribe(TopicArn=self.topic, Protocol="sqs", Endpoint=arn)

    def receive(self) -> list[dict[str, Any]]:
        """The envelopes that have come, each once."""
        received = self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10).get("Messages", [])
        for message in received:
            self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
        return [json.loads(message["Body"]) for message in received]


def test_topic_gets_document_of_aws(tmp_path: Path, backend: Backend) -> None:
    box = Mailbox(backend, "document")

    async def work(world: AlarmWorld) -> None:
        dimensions = [{"Name": "EndpointName", "Value": "e"}]
        await world.put("a", AlarmActions=[box.topic], Dimensions=dimensions, EvaluationPeriods=1, DatapointsToAlarm=1)
        world.publish(9.0, Dimensions=dimensions)
        world.now += 60
        await world.evaluator.tick(world.now)
        assert await NoticeSender(world.store, backend, world.clock).send_first()
        assert await world.notices() == []
        (envelope,) = await until(box.receive)
        assert envelope["Subject"] == 'ALARM: "a" in EU (Ireland)'
        assert json.loads(envelope["Message"]) == {
            "AlarmName": "a",
            "AlarmDescription": None,
            "AWSAccountId": ACCOUNT,
            "Region": "EU (Ireland)",
            "AlarmArn": f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:a",
            "AlarmConfigurationUpdatedTimestamp": iso(START),
            "StateChangeTime": iso(START + 60),
            "OldStateValue": "INSUFFICIENT_DATA",
            "NewStateValue": "ALARM",
            "NewStateReason": "Threshold Crossed: 1 out of the last 1 datapoints [9.0 (14/09/26 05:40:00)] was greater"
            " than the threshold (5.0) (minimum 1 datapoint for OK -> ALARM transition).",
            "ActionExecutedAfterMuteWindow": False,
            "OKActions": [],
            "AlarmActions": [box.topic],
            "InsufficientDataActions": [],
            "Trigger": {
                "MetricName": "m",
                "Namespace": "N",
                "StatisticType": "Statistic",
                "Statistic": "AVERAGE",
                "Unit": None,
                "Dimensions": [{"value": "e", "name": "EndpointName"}],
                "Period": 60,
                "EvaluationPeriods": 1,
                "DatapointsToAlarm": 1,
                "ComparisonOperator": "GreaterThanThreshold",
                "Threshold": 5.0,
                "TreatMissingData": "missing",
                "EvaluateLowSampleCountPercentile": "",
            },
        }
        items = (await world.call("DescribeAlarmHistory", HistoryItemType="Action"))["AlarmHistoryItems"]
        assert [item["HistorySummary"] for item in items] == [f"Successfully executed action {box.topic}"]
        published = json.loads(json.loads(items[0]["HistoryData"])["publishedMessage"])
        assert published == {"default": envelope["Message"]}

    in_world(tmp_path, work)


def test_long_names_are_cut_in_subject(tmp_path: Path, backend: Backend) -> None:
    box = Mailbox(backend, "subjects")

    async def work(world: AlarmWorld) -> None:
        for name in ("x" * 255, "before-界é界é"):
            await world.put(name, OKActions=[box.topic])
            await world.call("SetAlarmState", AlarmName=name, StateValue="OK", StateReason="so")
        sender = NoticeSender(world.store, backend)
        assert await sender.send_first() and await sender.send_first() and not await sender.send_first()
        envelopes = await until(box.receive)
        while len(envelopes) < 2:
            envelopes += await until(box.receive)
        subjects = sorted(envelope["Subject"] for envelope in envelopes)
        assert subjects == ['OK: "before-_" in EU (Ireland)', f'OK: "{"x" * 75}..." in EU (Ireland)']
        assert len(subjects[1]) == 100

    in_world(tmp_path, work)


def test_missing_topic_fails_in_history(tmp_path: Path, backend: Backend) -> None:
    topic = f"arn:aws:sns:{REGION}:{ACCOUNT}:missing"

    async def work(world: AlarmWorld) -> None:
        await world.put("a", OKActions=[topic])
        await world.call("SetAlarmState", AlarmName="a", StateValue="OK", StateReason="so")
        assert await NoticeSender(world.store, backend, world.clock).send_first()
        assert await world.history("Action") == [f"Failed to execute action {topic}"]
        assert await world.notices() == []

    in_world(tmp_path, work)


def test_dead_backend_loses_no_notice(tmp_path: Path, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    box, line = Mailbox(backend, "waiting"), Line(backend, is_cut=True)

    async def first(world: AlarmWorld) -> None:
        sender = NoticeSender(world.store, line)
        await world.put("a", OKActions=[box.topic], AlarmActions=[box.topic])
        for state in ("OK", "ALARM"):
            await world.call("SetAlarmState", AlarmName="a", StateValue=state, StateReason="so")
        async with running(sender.run):
            await until(lambda: line.attempts >= 2)

    async def second(world: AlarmWorld) -> None:
        line.is_cut = False
        states: list[str] = []
        async with running(NoticeSender(world.store, line).run):
            while len(states) < 2:
                states += [json.loads(each["Message"])["NewStateValue"] for each in await until(box.receive)]
        assert states == ["OK", "ALARM"]

    in_world(tmp_path, first)
    in_world(tmp_path, second)
    assert len([record for record in caplog.records if record.name == "endpoint.alarms.notice_sender"]) == 1


def test_new_notice_wakes_sender(tmp_path: Path, backend: Backend) -> None:
    box = Mailbox(backend, "woken")

    async def work(world: AlarmWorld) -> None:
        await world.put("a", OKActions=[box.topic])
        async with running(world.sender.run):
            await asyncio.sleep(0)
            await world.call("SetAlarmState", AlarmName="a", StateValue="OK", StateReason="so")
            assert len(await until(box.receive)) == 1

    in_world(tmp_path, work, backend=backend)
