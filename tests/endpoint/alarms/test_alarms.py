from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from endpoint.alarms.actions import NO_VALUES
from endpoint.alarms.times import iso
from endpoint.aws.errors import AwsError
from testing.endpoint.alarming import ACCOUNT, POLICY, REGION, START, TOPIC, AlarmWorld, in_world

ARN = f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:"


async def refusal(world: AlarmWorld, operation: str, **given: Any) -> tuple[str, int]:
    with pytest.raises(AwsError) as caught:
        await world.call(operation, **given)
    return caught.value.code, caught.value.status


async def names(world: AlarmWorld, **given: Any) -> list[str]:
    return [alarm["AlarmName"] for alarm in (await world.call("DescribeAlarms", **given))["MetricAlarms"]]


def test_new_alarm_is_described_as_given(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", Dimensions=[{"Name": "D", "Value": "1"}], AlarmActions=[TOPIC], Unit="Count")
        answer = await world.call("DescribeAlarms")
        (alarm,) = answer["MetricAlarms"]
        assert answer | {"MetricAlarms": []} == {
            "CompositeAlarms": [],
            "MetricAlarms": [],
            "LogAlarms": [],
            "NextToken": None,
        }
        assert alarm == {
            "AlarmName": "a",
            "AlarmArn": f"{ARN}a",
            "ActionsEnabled": True,
            "AlarmActions": [TOPIC],
            "OKActions": [],
            "InsufficientDataActions": [],
            "Namespace": "N",
            "MetricName": "m",
            "Statistic": "Average",
            "Unit": "Count",
            "Period": 60,
            "Dimensions": [{"Name": "D", "Value": "1"}],
            "EvaluationPeriods": 3,
            "Threshold": 5.0,
            "ComparisonOperator": "GreaterThanThreshold",
            "StateValue": "INSUFFICIENT_DATA",
            "StateReason": "Unchecked: Initial alarm creation",
            "StateReasonData": None,
            "AlarmConfigurationUpdatedTimestamp": START,
            "StateUpdatedTimestamp": START,
            "StateTransitionedTimestamp": START,
        }

    in_world(tmp_path, work)


def test_update_replaces_configuration_and_keeps_state(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", Unit="Count", TreatMissingData="ignore")
        await world.call("SetAlarmState", AlarmName="a", StateValue="OK", StateReason="so")
        world.now += 10
        await world.put("a", Threshold=7.0)
        (alarm,) = (await world.call("DescribeAlarms"))["MetricAlarms"]
        assert "Unit" not in alarm and "TreatMissingData" not in alarm
        assert (alarm["Threshold"], alarm["StateValue"], alarm["StateReason"]) == (7.0, "OK", "so")
        assert (alarm["AlarmConfigurationUpdatedTimestamp"], alarm["StateUpdatedTimestamp"]) == (START + 10, START)

    in_world(tmp_path, work)


def test_identical_put_changes_nothing(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a")
        before = await world.alarm("a")
        world.now += 10
        await world.put("a", Tags=[{"Key": "k", "Value": "v"}])
        assert await world.alarm("a") == before and len(await world.history()) == 1

    in_world(tmp_path, work)


def test_configuration_history_shows_what_changed(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a")
        world.now += 1
        await world.put("a", Threshold=7.0, AlarmDescription="more")
        world.now += 1
        await world.call("DisableAlarmActions", AlarmNames=["a", "missing"])
        await world.call("DisableAlarmActions", AlarmNames=["a"])
        world.now += 1
        await world.call("EnableAlarmActions", AlarmNames=["a"])
        await world.call("DeleteAlarms", AlarmNames=["missing", "a", "a"])
        items = (await world.call("DescribeAlarmHistory", ScanBy="TimestampAscending"))["AlarmHistoryItems"]
        assert [item["HistorySummary"] for item in items] == [
            f'Alarm "a" {verb}' for verb in ("created", "updated", "updated", "updated", "deleted")
        ]
        documents = [json.loads(item["HistoryData"]) for item in items]
        assert [document["type"] for document in documents] == ["Create", "Update", "Update", "Update", "Delete"]
        assert documents[0]["createdAlarm"] == {
            "alarmName": "a",
            "alarmArn": f"{ARN}a",
            "alarmConfigurationUpdatedTimestamp": iso(START),
            "namespace": "N",
            "metricName": "m",
            "extendedStatistic": "AVERAGE",
            "period": 60,
            "dimensions": [],
            "threshold": 5.0,
            "comparisonOperator": "GreaterThanThreshold",
            "evaluationPeriods": 3,
            "stateValue": "INSUFFICIENT_DATA",
            "stateUpdatedTimestamp": iso(START),
            "actionsEnabled": True,
            "alarmActions": [],
            "insufficientDataActions": [],
            "okactions": [],
        }
        assert documents[1]["originalUpdatedFields"] == {
            "alarmConfigurationUpdatedTimestamp": iso(START),
            "threshold": 5.0,
        }
        assert documents[2]["originalUpdatedFields"]["actionsEnabled"] is True
        assert documents[4]["deletedAlarm"]["alarmDescription"] == "more"
        assert await names(world) == []

    in_world(tmp_path, work)


def test_alarms_are_chosen_by_every_filter(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("b1", OKActions=[TOPIC])
        await world.put("b2")
        await world.put("a1", AlarmActions=[POLICY])
        await world.call("SetAlarmState", AlarmName="b2", StateValue="OK", StateReason="so")
        assert await names(world) == ["a1", "b1", "b2"]
        assert await names(world, AlarmNames=["b2", "missing", "a1", "b2"]) == ["a1", "b2"]
        assert await names(world, AlarmNamePrefix="b") == ["b1", "b2"]
        assert await names(world, AlarmNamePrefix="b", StateValue="OK") == ["b2"]
        assert await names(world, ActionPrefix="arn:aws:sns") == ["b1"]
        assert await names(world, AlarmTypes=["CompositeAlarm"]) == []
        assert await names(world, AlarmTypes=["CompositeAlarm", "MetricAlarm"]) == ["a1", "b1", "b2"]
        assert await names(world, ChildrenOfAlarmName="b1") == [] == await names(world, ParentsOfAlarmName="b1")
        assert await refusal(world, "DescribeAlarms", ChildrenOfAlarmName="b1", StateValue="OK") == (
            "ValidationError",
            400,
        )

    in_world(tmp_path, work)


def test_alarms_come_in_pages(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        for number in range(5):
            await world.put(f"a{number}")
        pages, given = [], {"MaxRecords": 2}
        while True:
            page = await world.call("DescribeAlarms", **given)
            pages.append([alarm["AlarmName"] for alarm in page["MetricAlarms"]])
            if page["NextToken"] is None:
                break
            await world.alarms.delete([pages[-1][-1]])
            given["NextToken"] = page["NextToken"]
        assert pages == [["a0", "a1"], ["a2", "a3"], ["a4"]]
        for token in ("invalid-token", "WzFd", ""):
            assert await refusal(world, "DescribeAlarms", NextToken=token) == ("InvalidNextToken", 400)

    in_world(tmp_path, work)


def test_alarms_of_metric_match_exactly(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        pairs = [{"Name": "Z", "Value": "1"}, {"Name": "A", "Value": "2"}]
        await world.put("plain")
        await world.put("two", Dimensions=pairs, Statistic="Sum", Period=120)

        async def found(**given: Any) -> list[str]:
            answer = await world.call("DescribeAlarmsForMetric", Namespace="N", MetricName="m", **given)
            return [alarm["AlarmName"] for alarm in answer["MetricAlarms"]]

        assert await found() == ["plain"]
        assert await found(Dimensions=pairs) == ["two"] == await found(Dimensions=pairs[::-1])
        assert await found(Dimensions=pairs[:1]) == []
        assert await found(Dimensions=pairs, Statistic="Sum", Period=120) == ["two"]
        assert await found(Dimensions=pairs, Statistic="Average") == []
        assert await found(Unit="Count") == [] == await found(Period=60, ExtendedStatistic="p90")

    in_world(tmp_path, work)


def test_history_is_filtered_and_paged(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        for name in ("a", "b"):
            world.now += 10
            await world.put(name)
            for state in ("OK", "ALARM"):
                world.now += 10
                await world.call("SetAlarmState", AlarmName=name, StateValue=state, StateReason="so")

        async def found(**given: Any) -> list[tuple[str, str]]:
            items = (await world.call("DescribeAlarmHistory", **given))["AlarmHistoryItems"]
            return [(item["AlarmName"], item["HistorySummary"].split()[-1]) for item in items]

        everything = [("b", "ALARM"), ("b", "OK"), ("b", "created"), ("a", "ALARM"), ("a", "OK"), ("a", "created")]
        assert await found() == everything
        assert await found(ScanBy="TimestampAscending") == everything[::-1]
        assert await found(AlarmName="a", HistoryItemType="StateUpdate") == [("a", "ALARM"), ("a", "OK")]
        assert await found(StartDate=START + 30, EndDate=START + 40) == [("b", "created"), ("a", "ALARM")]
        assert await found(AlarmTypes=["CompositeAlarm"]) == [] == await found(AlarmName="missing")
        paged, given = [], {"MaxRecords": 4}
        while given.get("NextToken", "first"):
            page = await world.call("DescribeAlarmHistory", **given)
            paged += [(item["AlarmName"], item["HistorySummary"].split()[-1]) for item in page["AlarmHistoryItems"]]
            given["NextToken"] = page["NextToken"]
        assert paged == everything
        assert await refusal(world, "DescribeAlarmHistory", NextToken="x") == ("InvalidNextToken", 400)
        assert await refusal(world, "DescribeAlarmHistory", AlarmContributorId="c") == ("ValidationError", 400)

    in_world(tmp_path, work)


def test_history_ends_after_thirty_days(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a")
        world.now += 31 * 86400
        await world.put("b")
        assert await world.history() == ['Alarm "b" created']
        await world.store.prune(world.now)
        rows = await world.database.read(lambda db: db.execute("SELECT alarm FROM alarm_history").fetchall())
        assert [row["alarm"] for row in rows] == ["b"]

    in_world(tmp_path, work)


def test_set_state_is_told_once(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", OKActions=[TOPIC])
        for reason in ("first", "second"):
            given = {"AlarmName": "a", "StateValue": "OK", "StateReason": reason, "StateReasonData": '{ "z": [1] }'}
            await world.call("SetAlarmState", **given)
        assert await world.notices() == [(TOPIC, 'OK: "a" in EU (Ireland)')]
        items = await world.call("DescribeAlarmHistory", HistoryItemType="StateUpdate")
        (item,) = items["AlarmHistoryItems"]
        assert item["HistorySummary"] == "Alarm updated from INSUFFICIENT_DATA to OK"
        assert item["HistoryData"] == (
            '{"version":"1.0","oldState":{"stateValue":"INSUFFICIENT_DATA","stateReason":"Unchecked: Initial alarm'
            ' creation"},"newState":{"stateValue":"OK","stateReason":"first","stateReasonData":{ "z": [1] }}}'
        )
        (alarm,) = (await world.call("DescribeAlarms"))["MetricAlarms"]
        assert (alarm["StateReason"], alarm["StateReasonData"]) == ("first", '{ "z": [1] }')

    in_world(tmp_path, work)


def test_bad_state_is_refused(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a")
        given = {"StateValue": "OK", "StateReason": "so"}
        assert await refusal(world, "SetAlarmState", AlarmName="missing", **given) == ("ResourceNotFound", 404)
        for data in ('{"x":', '{"x":NaN}'):
            told = await refusal(world, "SetAlarmState", AlarmName="a", StateReasonData=data, **given)
            assert told == ("InvalidFormat", 400)
        assert await world.state("a") == "INSUFFICIENT_DATA"

    in_world(tmp_path, work)


def reason_data(age_s: float, *values: float | None) -> str:
    return json.dumps({"queryDate": iso(START - age_s), "recentDatapoints": values or [1.0, None, 9.0]})


@pytest.mark.parametrize(
    ("data", "values"),
    [
        *[(None, None), ("{}", None), ("[1]", None), (reason_data(20), None), (reason_data(3), (1.0, 9.0))],
        *[(reason_data(3, 10**400), None), (reason_data(3, 1.0).replace("1.0", "1e999"), None)],
    ],
    ids=["no data", "empty", "a list", "old datapoints", "recent datapoints", "a number too long", "one too large"],
)
def test_set_state_scales_by_recent_values(tmp_path: Path, data: str | None, values: tuple[float, ...] | None) -> None:
    async def work(world: AlarmWorld) -> None:
        await world.put("a", AlarmActions=[POLICY, TOPIC])
        given = {"StateReasonData": data} if data is not None else {}
        await world.call("SetAlarmState", AlarmName="a", StateValue="ALARM", StateReason="so", **given)
        assert [firing.values for firings in world.fired for firing in firings] == ([values] if values else [])
        items = (await world.call("DescribeAlarmHistory", HistoryItemType="Action"))["AlarmHistoryItems"]
        verb = "Successfully executed action" if values else "Failed to execute action"
        assert [item["HistorySummary"] for item in items] == [f"{verb} {POLICY}"]
        assert json.loads(items[0]["HistoryData"])["error"] == (None if values else NO_VALUES)
        assert [topic for topic, _ in await world.notices()] == [TOPIC]

    in_world(tmp_path, work)


def test_tags_are_kept_with_their_alarm(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        async def tags() -> dict[str, str]:
            answer = await world.call("ListTagsForResource", ResourceARN=f"{ARN}a")
            return {tag["Key"]: tag["Value"] for tag in answer["Tags"]}

        await world.put("a", Tags=[{"Key": "create", "Value": "original"}, {"Key": "keep", "Value": "yes"}])
        await world.put("a", Threshold=7.0, Tags=[{"Key": "create", "Value": "ignored"}])
        assert await tags() == {"create": "original", "keep": "yes"}
        new = [{"Key": "create", "Value": "replaced"}, {"Key": "added", "Value": ""}]
        await world.call("TagResource", ResourceARN=f"{ARN}a", Tags=new)
        await world.call("UntagResource", ResourceARN=f"{ARN}a", TagKeys=["keep", "missing"])
        assert await tags() == {"added": "", "create": "replaced"}
        await world.alarms.delete(["a"])
        assert await refusal(world, "ListTagsForResource", ResourceARN=f"{ARN}a") == ("ResourceNotFoundException", 404)
        await world.put("a")
        assert await tags() == {}

    in_world(tmp_path, work)


def test_bad_tags_are_refused(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        many = [{"Key": f"k{number}", "Value": "v"} for number in range(51)]
        with pytest.raises(AwsError, match="The resultant tag set must not have more than 50 user tags"):
            await world.put("a", Tags=many)
        with pytest.raises(AwsError, match="must not start with any case of"):
            await world.put("a", Tags=[{"Key": "aws:x", "Value": "v"}])
        assert await names(world) == []
        await world.put("a", Tags=many[:50])
        invalid = ("InvalidParameterValue", 400)
        assert await refusal(world, "TagResource", ResourceARN=f"{ARN}a", Tags=many) == invalid
        assert await refusal(world, "TagResource", ResourceARN=f"{ARN}a", Tags=many[50:]) == invalid
        for operation, given in {"TagResource": {"Tags": many[:1]}, "UntagResource": {"TagKeys": ["k"]}}.items():
            for arn in (f"{ARN}missing", ARN.replace(REGION, "us-west-2") + "a"):
                assert await refusal(world, operation, ResourceARN=arn, **given) == ("ResourceNotFoundException", 404)

    in_world(tmp_path, work)


def test_number_of_alarms_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: AlarmWorld) -> None:
        monkeypatch.setattr("endpoint.alarms.alarms.MAX_ALARMS", 1)
        await world.put("a")
        with pytest.raises(AwsError) as caught:
            await world.put("b")
        assert caught.value.code == "LimitExceeded"
        await world.put("a", Threshold=7.0)

    in_world(tmp_path, work)


def test_other_kinds_of_alarms_are_refused(tmp_path: Path) -> None:
    async def work(world: AlarmWorld) -> None:
        for operation in ("PutCompositeAlarm", "PutLogAlarm", "PutAlarmMuteRule", "PutAnomalyDetector"):
            assert await refusal(world, operation) == ("UnknownOperationException", 400)

    in_world(tmp_path, work)


def test_next_gateway_has_alarms_and_tags(tmp_path: Path) -> None:
    async def first(world: AlarmWorld) -> Any:
        await world.put("a", Tags=[{"Key": "k", "Value": "v"}], Dimensions=[{"Name": "D", "Value": "1"}])
        await world.call("SetAlarmState", AlarmName="a", StateValue="ALARM", StateReason="so", StateReasonData="[1]")
        return await world.call("DescribeAlarms"), await world.history()

    async def second(world: AlarmWorld) -> Any:
        answer = await world.call("ListTagsForResource", ResourceARN=f"{ARN}a")
        assert answer == {"Tags": [{"Key": "k", "Value": "v"}]}
        return await world.call("DescribeAlarms"), await world.history()

    assert in_world(tmp_path, first) == in_world(tmp_path, second)
