"""CloudWatch through the gateway: alarms are ours in every protocol, metric data are recorded and forwarded."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import httpx
import pytest
from botocore.exceptions import ClientError

from testing.endpoint.botocore_wire import client
from testing.endpoint.gateway_process import GatewayProcess, gateway_process
from testing.endpoint.upstream import Upstream

PROTOCOLS = ["json", "query", "smithy-rpc-v2-cbor"]
ALARM_ARN = "arn:aws:cloudwatch:us-east-1:000000000000:alarm:a"
ALARM = {
    "AlarmName": "a",
    "Namespace": "ours",
    "MetricName": "backlog",
    "Dimensions": [{"Name": "EndpointName", "Value": "e"}],
    "Statistic": "Average",
    "Period": 60,
    "EvaluationPeriods": 2,
    "Threshold": 1.5,
    "ComparisonOperator": "GreaterThanThreshold",
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway_process(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def seen(gateway: GatewayProcess) -> Any:
    """Function that returns what the handler and the recorder got since the test began."""

    def told() -> list[list[Any]]:
        calls: list[list[Any]] = json.loads(gateway.client("cloudwatch").describe_alarms()["NextToken"])
        return calls

    before = len(told())
    return lambda: told()[before:]


@pytest.fixture(params=PROTOCOLS)
def cloudwatch(request: pytest.FixtureRequest, gateway: GatewayProcess) -> Any:
    return gateway.client("cloudwatch", protocol=request.param, retries={"total_max_attempts": 1})


def error_of(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    return error.value.response["Error"]["Code"], error.value.response["ResponseMetadata"]["HTTPStatusCode"]


def alarms_of_backend(gateway: GatewayProcess) -> list[Any]:
    found = client("cloudwatch", url=gateway.backend_url).describe_alarms()
    return [*found["MetricAlarms"], *found.get("CompositeAlarms", [])]


def test_alarms_never_reach_backend(gateway: GatewayProcess, cloudwatch: Any, seen: Any) -> None:
    cloudwatch.put_metric_alarm(**ALARM)
    cloudwatch.set_alarm_state(AlarmName="a", StateValue="ALARM", StateReason="r")
    cloudwatch.disable_alarm_actions(AlarmNames=["a"])
    cloudwatch.delete_alarms(AlarmNames=["a"])
    assert seen() == [
        ["PutMetricAlarm", ALARM],
        ["SetAlarmState", {"AlarmName": "a", "StateValue": "ALARM", "StateReason": "r"}],
        ["DisableAlarmActions", {"AlarmNames": ["a"]}],
        ["DeleteAlarms", {"AlarmNames": ["a"]}],
    ]
    assert alarms_of_backend(gateway) == []


def test_refusal_of_handler_reaches_client(gateway: GatewayProcess, cloudwatch: Any) -> None:
    with pytest.raises(ClientError) as error:
        cloudwatch.put_composite_alarm(AlarmName="a", AlarmRule="TRUE")
    assert error_of(error) == ("InvalidAction", 400)
    assert alarms_of_backend(gateway) == []


def test_tags_of_alarms_are_handlers(gateway: GatewayProcess, cloudwatch: Any, seen: Any) -> None:
    cloudwatch.tag_resource(ResourceARN=ALARM_ARN, Tags=[{"Key": "k", "Value": "v"}])
    assert cloudwatch.list_tags_for_resource(ResourceARN=ALARM_ARN)["Tags"] == []
    cloudwatch.untag_resource(ResourceARN=ALARM_ARN, TagKeys=["k"])
    assert [name for name, _ in seen()] == ["TagResource", "ListTagsForResource", "UntagResource"]
    with pytest.raises(ClientError):
        cloudwatch.list_tags_for_resource(ResourceARN="arn:aws:cloudwatch:us-east-1:000000000000:insight-rule/r")
    assert len(seen()) == 3


def test_metric_data_are_recorded_and_kept(cloudwatch: Any, seen: Any) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    name = f"metric-{cloudwatch.meta.service_model.resolved_protocol}"
    data = [
        {"MetricName": name, "Value": 3.0, "Timestamp": now, "Unit": "Count"},
        {"MetricName": name, "Values": [1.0, 2.0], "Counts": [1.0, 2.0], "Timestamp": now},
    ]
    cloudwatch.put_metric_data(Namespace="ours", MetricData=data)
    recorded = [datum | {"Timestamp": now.timestamp()} for datum in data]
    assert seen() == [["record", {"Namespace": "ours", "MetricData": recorded}]]
    span = {"StartTime": now - timedelta(minutes=5), "EndTime": now + timedelta(minutes=5)}
    (point,) = cloudwatch.get_metric_statistics(
        Namespace="ours", MetricName=name, Period=300, Statistics=["Sum"], **span
    )["Datapoints"]
    assert point["Sum"] == 8.0
    assert [metric["MetricName"] for metric in cloudwatch.list_metrics(MetricName=name)["Metrics"]] == [name]


def test_refused_metric_data_are_not_recorded(cloudwatch: Any, seen: Any) -> None:
    with pytest.raises(ClientError) as error:
        cloudwatch.put_metric_data(Namespace=":ours", MetricData=[{"MetricName": "refused", "Value": 1.0}])
    assert error_of(error) == ("ValidationError", 400)
    assert seen() == []
    assert cloudwatch.list_metrics(MetricName="refused")["Metrics"] == []


def test_other_operations_are_forwarded(cloudwatch: Any, seen: Any) -> None:
    cloudwatch.put_dashboard(DashboardName="d", DashboardBody='{"widgets": []}')
    assert "d" in [entry["DashboardName"] for entry in cloudwatch.list_dashboards()["DashboardEntries"]]
    assert seen() == []


def ask(gateway: GatewayProcess, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> httpx.Response:
    return httpx.request(method, f"{gateway.url}{path}", headers=headers, content=body, trust_env=False)


FORM = "application/x-www-form-urlencoded"
PUT_BY_FORM = (
    b"Action=PutMetricAlarm&Version=2010-08-01&AlarmName=unsigned&EvaluationPeriods=1"
    b"&ComparisonOperator=GreaterThanThreshold"
)
PUT_BY_CBOR = cbor2.dumps(
    {"AlarmName": "unsigned", "EvaluationPeriods": 1, "ComparisonOperator": "GreaterThanThreshold"}
)
SIGNED_FOR_S3 = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
TARGET = "GraniteServiceVersion20100801"


@pytest.mark.parametrize(
    ("method", "path", "headers", "body"),
    [
        ("POST", "/", {"content-type": FORM}, PUT_BY_FORM),
        ("GET", f"/?{PUT_BY_FORM.decode()}", {}, b""),
        (
            "POST",
            f"/service/{TARGET}/operation/PutMetricAlarm",
            {"smithy-protocol": "rpc-v2-cbor", "content-type": "application/cbor"},
            PUT_BY_CBOR,
        ),
        (
            "POST",
            "/",
            {"x-amz-target": f"{TARGET}.PutMetricAlarm", "authorization": SIGNED_FOR_S3},
            json.dumps(cbor2.loads(PUT_BY_CBOR)).encode(),
        ),
    ],
    ids=["form", "url", "cbor", "signed for another service"],
)
def test_alarm_without_signature_is_handlers(
    gateway: GatewayProcess, seen: Any, method: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    assert ask(gateway, method, path, headers, body).status_code == 200
    assert [(name, parameters["AlarmName"]) for name, parameters in seen()] == [("PutMetricAlarm", "unsigned")]
    assert alarms_of_backend(gateway) == []


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/x", {"content-type": FORM}, PUT_BY_FORM),
        ("/", {"content-type": FORM}, PUT_BY_FORM.replace(b"2010-08-01", b"2009-05-15")),
        ("/?Action=ListMetrics", {"content-type": FORM}, PUT_BY_FORM),
        ("/x/service/granite/operation/PutMetricAlarm", {"content-type": FORM}, PUT_BY_FORM),
        (f"/service/{TARGET}/operation/PutMetricAlarm", {}, PUT_BY_CBOR),
        (f"/service/{TARGET}/operation/PutMetricAlarm", {"content-type": FORM}, b"Action=ListMetrics"),
        (
            f"/service/{TARGET}/operation/ListMetrics",
            {"smithy-protocol": "rpc-v2-cbor", "x-amz-target": f"{TARGET}.PutMetricAlarm"},
            PUT_BY_CBOR,
        ),
    ],
    ids=["path", "version", "two actions", "other path", "no protocol", "two operations", "two protocols"],
)
def test_malformed_alarm_reaches_nobody(
    gateway: GatewayProcess, seen: Any, path: str, headers: dict[str, str], body: bytes
) -> None:
    assert ask(gateway, "POST", path, headers, body).status_code in (400, 404)
    assert seen() == []
    assert alarms_of_backend(gateway) == []


# Another backend


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


def test_data_count_once_backend_took_them(tmp_path: Path, upstream: Upstream) -> None:
    threading.Thread(target=upstream.greet).start()
    with gateway_process(tmp_path, backend=upstream.url) as outward:
        cloudwatch = outward.client("cloudwatch", key="1" * 12, retries={"total_max_attempts": 1})
        heads: list[bytes] = []

        def answer(status: bytes) -> None:
            with upstream.accept() as sock:
                head, _, body = upstream.head.partition(b"\r\n\r\n")
                heads.append(head)
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                assert length is not None
                while len(body) < int(length[1]):
                    body += sock.recv(65536)
                sock.sendall(b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)

        for status, is_taken in ((b"400 Bad Request", False), (b"200 OK", True)):
            thread = threading.Thread(target=answer, args=[status])
            thread.start()
            try:
                cloudwatch.put_metric_data(Namespace="ours", MetricData=[{"MetricName": "m", "Value": 1.0}])
            except ClientError:
                assert not is_taken
            thread.join()
        told = json.loads(cloudwatch.describe_alarms()["NextToken"])  # answered without the backend
        assert told == [["record", {"Namespace": "ours", "MetricData": [{"MetricName": "m", "Value": 1.0}]}]]
        assert all(b"Credential=000000000000/" in head for head in heads)
