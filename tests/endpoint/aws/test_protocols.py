"""CloudWatch's three protocols, spoken with botocore's own clients."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import cbor2
import pytest
from botocore import xform_name
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.responses import Response

from endpoint.aws.errors import AwsError, not_implemented
from endpoint.aws.service import Service
from endpoint.aws.wire import MAX_CONTENT_BYTES, HttpRequest
from testing.endpoint.botocore_wire import client
from testing.endpoint.shape_values import ANY_TEXT, XML_TEXT, values_of, with_epochs

CLOUDWATCH = Service("cloudwatch")
PROTOCOLS = ["json", "query", "smithy-rpc-v2-cbor"]
OPERATIONS = [
    *("PutMetricAlarm", "DescribeAlarms", "DescribeAlarmsForMetric", "DescribeAlarmHistory", "DeleteAlarms"),
    *("SetAlarmState", "PutMetricData", "TagResource", "ListTagsForResource", "GetMetricWidgetImage"),
    "DescribeAnomalyDetectors",
]
TARGET = "GraniteServiceVersion20100801"
JSON_HEADERS = {"content-type": "application/x-amz-json-1.0", "x-amzn-query-mode": "true"}
FORM_HEADERS = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
CBOR_HEADERS = {"content-type": "application/cbor", "smithy-protocol": "rpc-v2-cbor", "x-amzn-query-mode": "true"}


class Wire:
    """Parses a client's requests and answers with `result`."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.result: dict[str, Any] | AwsError = {}

    def __call__(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        request = HttpRequest(method=method, path=path, headers=headers, body=body)
        wire = CLOUDWATCH.wire(headers)
        name, labels = wire.operation(request)
        self.seen.append((name, CLOUDWATCH.parse(name, labels, request)))
        if isinstance(self.result, AwsError):
            return wire.error_response(self.result, headers)
        return wire.response(name, self.result)


WIRE = Wire()
CLIENTS = {name: client("cloudwatch", WIRE, protocol=name, parameter_validation=False) for name in PROTOCOLS}


def request_of(protocol: str, operation: str, body: bytes, **headers: str) -> HttpRequest:
    match protocol:
        case "json":
            sent, path = JSON_HEADERS | {"x-amz-target": f"{TARGET}.{operation}"}, "/"
        case "query":
            sent, path, body = FORM_HEADERS, "/", f"Action={operation}&Version=2010-08-01&".encode() + body
        case _:
            sent, path = CBOR_HEADERS, f"/service/{TARGET}/operation/{operation}"
    return HttpRequest(method="POST", path=path, headers=sent | headers, body=body)


def read(protocol: str, operation: str, body: bytes, **headers: str) -> dict[str, Any]:
    name, parameters = CLOUDWATCH.read(request_of(protocol, operation, body, **headers))
    assert name == operation
    return parameters


def refused(protocol: str, operation: str, body: bytes, **headers: str) -> AwsError:
    with pytest.raises(AwsError) as error:
        read(protocol, operation, body, **headers)
    return error.value


# Requests and results


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("operation", OPERATIONS)
@hypothesis_settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_every_protocol_round_trips(protocol: str, operation: str, data: st.DataObject) -> None:
    made = CLIENTS[protocol]
    model = made.meta.service_model.operation_model(operation)
    is_query = protocol == "query"
    text = XML_TEXT if is_query else ANY_TEXT
    parameters = data.draw(values_of(model.input_shape, ANY_TEXT, has_empty_collections=not is_query))
    result = data.draw(values_of(model.output_shape, text)) if model.output_shape else {}
    WIRE.seen.clear()
    WIRE.result = result
    answered = getattr(made, xform_name(operation))(**parameters)
    assert WIRE.seen == [(operation, with_epochs(parameters))]
    assert answered.pop("ResponseMetadata")["HTTPStatusCode"] == 200
    assert answered == result


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answer_has_request_id(protocol: str) -> None:
    WIRE.result = {"MetricAlarms": []}
    answered = CLIENTS[protocol].describe_alarms()["ResponseMetadata"]
    assert re.fullmatch("[0-9a-f-]{36}", answered["RequestId"])
    types = {"json": "application/x-amz-json-1.0", "query": "text/xml"}
    assert answered["HTTPHeaders"]["content-type"] == types.get(protocol, "application/cbor")


def test_chosen_protocol_of_boto3_is_json() -> None:
    WIRE.result = {}
    headers: dict[str, str] = {}

    def look(method: str, path: str, sent: Mapping[str, str], body: bytes) -> Response:
        headers.update(sent)
        return WIRE(method, path, sent, body)

    client("cloudwatch", look).delete_alarms(AlarmNames=["a"])
    assert headers["content-type"] == "application/x-amz-json-1.0"
    assert headers["x-amzn-query-mode"] == "true"
    assert headers["x-amz-target"] == f"{TARGET}.DeleteAlarms"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_large_metric_data_arrive_compressed(protocol: str) -> None:
    WIRE.seen.clear()
    WIRE.result = {}
    encodings: list[str] = []

    def look(method: str, path: str, sent: Mapping[str, str], body: bytes) -> Response:
        encodings.append(sent["content-encoding"])
        return WIRE(method, path, sent, body)

    data = [{"MetricName": f"metric-{number}", "Value": float(number)} for number in range(500)]
    client("cloudwatch", look, protocol=protocol).put_metric_data(Namespace="ours", MetricData=data)
    assert encodings == ["gzip"]
    assert WIRE.seen == [("PutMetricData", {"Namespace": "ours", "MetricData": data})]


def test_query_may_be_in_url() -> None:
    request = HttpRequest(
        method="GET",
        path="/",
        headers={},
        query="Action=DescribeAlarms&Version=2010-08-01&AlarmNames.member.1=a%2Fb&X-Amz-Signature=0&MaxRecords=5",
    )
    assert CLOUDWATCH.read(request) == ("DescribeAlarms", {"AlarmNames": ["a/b"], "MaxRecords": 5})


def test_query_members_are_ordered_by_number() -> None:
    body = "&".join(f"AlarmNames.member.{number}=a{number}" for number in (10, 2, 1))
    assert read("query", "DeleteAlarms", body.encode()) == {"AlarmNames": ["a1", "a2", "a10"]}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-30T22:00:00Z", 1796076000.0),
        ("2026-11-30T22:00:00", 1796076000.0),
        ("2026-11-30T23:00:00.5%2B01:00", 1796076000.5),
        ("2026-11-30", 1795996800.0),
    ],
)
def test_query_times_are_iso_8601(text: str, seconds: float) -> None:
    assert read("query", "DescribeAlarmHistory", f"StartDate={text}".encode()) == {"StartDate": seconds}


def test_xml_replaces_what_it_cannot_hold() -> None:
    alarm = {"AlarmName": "a\x00b\x1b\r\n<c>&amp;", "Threshold": 1, "ActionsEnabled": True}
    WIRE.result = {"MetricAlarms": [alarm]}
    (answered,) = CLIENTS["query"].describe_alarms()["MetricAlarms"]
    assert answered == alarm | {"AlarmName": "a\ufffdb\ufffd\r\n<c>&amp;", "Threshold": 1.0}


def test_xml_has_namespace_wrapper_and_times() -> None:
    alarm = {"StateUpdatedTimestamp": 1796076000.25, "Threshold": 1, "EvaluationPeriods": 2}
    body = CLOUDWATCH.wire({}).response("DescribeAlarms", {"MetricAlarms": [alarm]}).body
    root = ElementTree.fromstring(body)
    namespace = "{http://monitoring.amazonaws.com/doc/2010-08-01/}"
    assert [child.tag for child in root] == [f"{namespace}DescribeAlarmsResult", f"{namespace}ResponseMetadata"]
    (member,) = root.iter(f"{namespace}member")
    assert {child.tag.removeprefix(namespace): child.text for child in member} == {
        "StateUpdatedTimestamp": "2026-11-30T22:00:00.250Z",
        "Threshold": "1.0",
        "EvaluationPeriods": "2",
    }


# Errors


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("code", "shape", "status"),
    [
        ("ValidationError", "ValidationException", 400),
        ("ResourceNotFound", "ResourceNotFound", 404),
        ("ResourceNotFoundException", "ResourceNotFoundException", 404),  # without a message in the model
        ("InvalidParameterCombination", "InvalidParameterCombinationException", 400),
        ("InvalidNextToken", "InvalidNextToken", 400),
        ("LimitExceeded", "LimitExceededFault", 400),
        ("InternalServiceError", "InternalServiceFault", 500),
    ],
)
def test_modelled_errors_reach_clients(protocol: str, code: str, shape: str, status: int) -> None:
    WIRE.result = AwsError(code, "no <way>")
    with pytest.raises(ClientError) as raised:
        CLIENTS[protocol].set_alarm_state(AlarmName="a", StateValue="OK", StateReason="r")
    answer = raised.value.response
    assert (answer["Error"]["Code"], answer["Error"]["Message"]) == (code, "no <way>")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == status
    assert answer["Error"]["Type"] == ("Sender" if status < 500 else "Receiver")
    if protocol != "query":
        assert answer["Error"]["QueryErrorCode"] == shape


def test_errors_raise_the_exceptions_of_clients() -> None:
    WIRE.result = AwsError("ResourceNotFound", "no")
    for made in CLIENTS.values():
        with pytest.raises(made.exceptions.ResourceNotFound):
            made.set_alarm_state(AlarmName="a", StateValue="OK", StateReason="r")


def test_query_codes_are_for_those_who_ask() -> None:
    error = AwsError("ValidationError", "no")
    asked = CLOUDWATCH.wire({"x-amz-target": "x"}).error_response(error, {"x-amzn-query-mode": "true"})
    assert asked.headers["x-amzn-query-error"] == "ValidationError;Sender"
    assert json.loads(asked.body) == {"__type": "ValidationException", "message": "no"}
    silent = CLOUDWATCH.wire({"x-amz-target": "x"}).error_response(error, {})
    assert "x-amzn-query-error" not in silent.headers


@pytest.mark.parametrize(
    ("protocol", "code", "status"),
    [
        ("json", "UnknownOperationException", 400),
        ("query", "InvalidAction", 400),
        ("smithy-rpc-v2-cbor", "UnknownOperationException", 404),
    ],
)
def test_unknown_operation_is_refused(protocol: str, code: str, status: int) -> None:
    request = request_of(protocol, "MakeCoffee", b"")
    wire = CLOUDWATCH.wire(request.headers)
    with pytest.raises(AwsError) as error:
        wire.operation(request)
    answer = wire.error_response(error.value, {})
    assert answer.status_code == status
    assert code.encode() in answer.body and b"MakeCoffee" in answer.body


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_missing_operation_is_invalid_action(protocol: str) -> None:
    WIRE.result = not_implemented("PutLogAlarm")
    with pytest.raises(ClientError) as raised:
        CLIENTS[protocol].delete_alarms(AlarmNames=["a"])
    assert raised.value.response["Error"]["Code"] == "InvalidAction"
    assert "PutLogAlarm is not implemented" in raised.value.response["Error"]["Message"]


@pytest.mark.parametrize(
    ("path", "query", "body"),
    [
        ("/", "", b""),
        ("/", "", b"Action=PutMetricAlarm&Version=2009-05-15"),
        ("/other", "", b"Action=PutMetricAlarm&Version=2010-08-01"),
        ("/", "Action=ListMetrics", b"Action=PutMetricAlarm"),
        ("/", "", b"Action=ListMetrics&Action=PutMetricAlarm"),
    ],
    ids=["no action", "version", "path", "two in url and body", "two in body"],
)
def test_ambiguous_query_is_refused(path: str, query: str, body: bytes) -> None:
    request = HttpRequest(method="POST", path=path, headers=FORM_HEADERS, body=body, query=query)
    with pytest.raises(AwsError) as error:
        CLOUDWATCH.wire(request.headers).operation(request)
    assert error.value.status == 400


# What can't be read


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("MaxRecords=x", "MaxRecords: STRING_VALUE can not be converted to Integer"),
        ("MaxRecords=1.5", "MaxRecords"),
        ("MaxRecords=1_0", "MaxRecords"),
        ("MaxRecords=%D9%A3", "MaxRecords"),
        ("MaxRecords=99999999999", "out of range"),
        (f"MaxRecords={'9' * 5000}", "MaxRecords"),
        ("MaxRecords=1&MaxRecords=2", "MaxRecords is given twice"),
        ("MaxRecords.x=1", "Start of structure or map"),
        ("AlarmNames=a", "Unexpected token"),
        ("AlarmNames.1=a", "AlarmNames is not followed by .member"),
        ("AlarmNames.member.x=a", "AlarmNames has a member without a number"),
        ("AlarmNames.member.1=a&AlarmNames.member.1.x=a", "AlarmNames.member.1.x"),
        ("AlarmNames.member.1.x=a&AlarmNames.member.1=a", "AlarmNames.member.1"),
        ("AlarmNames.member.1.x=a", "Start of structure or map"),
        ("AlarmNames.member.1=%FF", "not a form"),
        ("&".join(f"a{number}=1" for number in range(100_001)), "not a form"),
    ],
    ids=lambda value: value[:40],
)
def test_unreadable_form_is_malformed_input(body: str, named: str) -> None:
    error = refused("query", "DescribeAlarms", body.encode())
    assert named in error.message
    answer = CLOUDWATCH.wire({}).error_response(error, {})
    assert answer.status_code == 400
    assert b"<Code>MalformedInput</Code>" in answer.body


def test_time_that_is_none_has_aws_words() -> None:
    assert refused("query", "DescribeAlarmHistory", b"StartDate=now").message == "timestamp must follow ISO8601"


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999", "1e301"])
def test_number_without_bounds_is_refused(number: str) -> None:
    body = f"AlarmName=a&ComparisonOperator=GreaterThanThreshold&EvaluationPeriods=1&Threshold={number}"
    assert "Double" in refused("query", "PutMetricAlarm", body.encode()).message
    content = cbor2.dumps({"AlarmName": "a", "EvaluationPeriods": 1, "Threshold": float(number)})
    assert "Double" in refused("smithy-rpc-v2-cbor", "PutMetricAlarm", content).message


DEEP = b"\xa1\x6aAlarmNames" + b"\x81" * 100_000
SHARED = {"a": ["x"] * 10}


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"\xa1",
        cbor2.dumps({"MaxRecords": 1}) + b"\x00",
        cbor2.dumps([]),
        cbor2.dumps("text"),
        cbor2.dumps({"MaxRecords": "1"}),
        cbor2.dumps({"MaxRecords": 2**70}),
        cbor2.dumps({"MaxRecords": cbor2.CBORTag(1, 5)}),
        cbor2.dumps({"MaxRecords": cbor2.undefined}),
        cbor2.dumps({"AlarmNames": [b"bytes"]}),
        cbor2.dumps({"AlarmNames": [SHARED, SHARED]}, value_sharing=True),
        cbor2.dumps({"AlarmNames": ["abcdef"] * 10}, string_referencing=True),
        cbor2.dumps({"AlarmNames": cbor2.CBORTag(35, "(a+)+")}),
        b"\xa1\x6aAlarmNames\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa1\x6aAlarmNames\x81\x7b\x00\x00\x00\x7f\xff\xff\xff\xff",
        b"\xa1\x6aAlarmNames\x81\x61\xff",
        DEEP,
    ],
    ids=lambda body: body[:16].hex(),
)
def test_unreadable_cbor_is_serialization_exception(body: bytes) -> None:
    error = refused("smithy-rpc-v2-cbor", "DescribeAlarms", body)
    assert (error.code, error.status) == ("SerializationException", 400)


def test_large_cbor_is_refused_unread() -> None:
    body = b"\xa1\x6aAlarmNames\x9a\x00\x80\x00\x00" + b"\xa0" * (8 << 20)
    error = refused("smithy-rpc-v2-cbor", "DescribeAlarms", body)
    assert (error.code, error.status) == ("RequestEntityTooLargeException", 413)


@pytest.mark.parametrize("value", ["2026-11-30T22:00:00Z", [], None, True, float("nan")])
def test_cbor_time_must_be_number(value: Any) -> None:
    content = cbor2.dumps({"StartDate": cbor2.CBORTag(1, value)})
    assert refused("smithy-rpc-v2-cbor", "DescribeAlarmHistory", content).code == "SerializationException"


@pytest.mark.parametrize(
    ("body", "encoding", "named"),
    [
        (b"{}", "gzip", "is not gzip"),
        (gzip.compress(b"{}")[:-4], "gzip", "not one whole gzip stream"),
        (gzip.compress(b"{}") * 2, "gzip", "not one whole gzip stream"),
        (gzip.compress(bytes(MAX_CONTENT_BYTES + 1)), "gzip", "when decompressed"),
        (b"{}", "br", "Content-Encoding is not gzip"),
    ],
    ids=["plain", "cut", "two", "bomb", "brotli"],
)
def test_unreadable_compression_is_refused(body: bytes, encoding: str, named: str) -> None:
    request = request_of("json", "DescribeAlarms", body)
    headers = {**request.headers, "content-encoding": encoding}
    with pytest.raises(AwsError, match=named):
        CLOUDWATCH.read(HttpRequest(method="POST", path="/", headers=headers, body=body))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_constraints_are_checked_in_every_protocol(protocol: str) -> None:
    bodies = {
        "json": b'{"AlarmNames": [""]}',
        "query": b"AlarmNames.member.1=",
        "smithy-rpc-v2-cbor": cbor2.dumps({"AlarmNames": [""]}),
    }
    error = refused(protocol, "DescribeAlarms", bodies[protocol])
    assert error.code == "ValidationError"
    assert error.message.startswith("1 validation error detected: Value '[]' at 'alarmNames' failed to satisfy")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unknown_parameter_is_refused_by_name(protocol: str) -> None:
    bodies = {
        "json": b'{"Turbo": {"x": 1}}',
        "query": b"Turbo.x=1",
        "smithy-rpc-v2-cbor": cbor2.dumps({"Turbo": {"x": 1}}),
    }
    error = refused(protocol, "DescribeAlarms", bodies[protocol])
    assert (error.code, error.message.partition(":")[0]) == ("ValidationError", 'Unknown parameter "Turbo"')
