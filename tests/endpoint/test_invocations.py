"""Every way in which an invocation can end, over AWS's API: its object, notification, metrics and line in the log."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testing.endpoint.botocore_wire import client
from testing.endpoint.endpoint_up import BUCKET, EndpointUp, Sent
from testing.server import eventually

NO_ANSWER = (
    b"Amazon SageMaker could not get a response from the e endpoint. This can occur when CPU or memory utilization is"
    b" high."
)
"""Beginning of the failure object when the container doesn't answer."""
SEE_LOGS = "from model. See the SageMaker Endpoint logs in your account for more information."


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointUp]:
    """Start an endpoint process with `e`, an endpoint of one instance."""
    made = EndpointUp(tmp_path_factory.mktemp("up"))
    try:
        made.make_places()
        made.make_endpoint("e")
        yield made
    finally:
        made.close()


def variant_metric(up: EndpointUp, name: str, statistic: str = "Sum", endpoint: str = "e") -> float:
    return up.metric(endpoint, name, statistic, VariantName="main") or 0.0


def failed(sent: Sent) -> bytes:
    """Return the failure object's body; there must be no output."""
    [failure] = sent.ended().failures()
    assert sent.outputs() == []
    body: bytes = failure["body"]
    return body


# Success


def test_output_is_container_response_with_type(up: EndpointUp) -> None:
    sent = up.submit("e", body=b"\x00input\xff", ContentType="application/jsonlines", Accept="a/b").ended()
    assert sent.outputs() == [{"body": b"\x00input\xff", "type": "application/jsonlines"}]
    assert sent.failures() == []


def test_key_of_twelve_digits_reaches_everything(up: EndpointUp) -> None:
    s3, sns, sqs, runtime = (
        client(service, url=up.url, key="123456789012") for service in ("s3", "sns", "sqs", "sagemaker-runtime")
    )
    s3.create_bucket(Bucket="of-digits")
    s3.put_object(Bucket="of-digits", Key="in", Body=b"of digits")
    queue = sqs.create_queue(QueueName="of-digits")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    topic = sns.create_topic(Name="of-digits")["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"})
    up.make_endpoint("digits", S3OutputPath="s3://of-digits/out", NotificationConfig={"SuccessTopic": topic})
    answer = runtime.invoke_endpoint_async(
        EndpointName="digits", InputLocation="s3://of-digits/in", InferenceId="of-digits"
    )
    told = ""
    while "Completed" not in told:  # the first notification is the endpoint's test
        (message,) = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=20)["Messages"]
        told = message["Body"]
        sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    assert json.loads(told)["inferenceId"] == "of-digits"
    key = answer["OutputLocation"].removeprefix("s3://of-digits/")
    assert s3.get_object(Bucket="of-digits", Key=key)["Body"].read() == b"of digits"
    up.client("sagemaker").delete_endpoint(EndpointName="digits")


def test_success_notification_has_aws_keys(up: EndpointUp) -> None:
    sent = up.submit("e", ContentType="c/t", Accept="a/b", InferenceId="told").ended()
    notice = sent.notice()
    assert list(notice) == [
        "awsRegion",
        "eventTime",
        "receivedTime",
        "invocationStatus",
        "requestParameters",
        "responseParameters",
        "inferenceId",
        "eventVersion",
        "eventSource",
        "eventName",
    ]
    assert list(notice["requestParameters"]) == [
        "accept",
        "contentType",
        "customAttributes",
        "endpointName",
        "inputLocation",
    ]
    assert notice["responseParameters"] == {"contentType": "c/t", "outputLocation": sent.output}
    assert (notice["invocationStatus"], notice["eventName"]) == ("Completed", "InferenceResult")
    assert notice["receivedTime"] < notice["eventTime"] and notice["eventTime"].endswith("Z")


def test_inline_body_is_input(up: EndpointUp) -> None:
    sent = up.submit("e", Body=b"inline", ContentType="c/t").ended()
    assert sent.outputs() == [{"body": b"inline", "type": "c/t"}]
    assert "inputLocation" not in sent.notice()["requestParameters"]


def test_container_gets_documented_headers_only(up: EndpointUp) -> None:
    sent = up.submit("e", "headers-seen", Accept="a/b", InferenceId="mine").ended()
    [output] = sent.outputs()
    seen = json.loads(output["body"])
    assert (seen["accept"], seen["x-amzn-sagemaker-custom-attributes"]) == ("a/b", "do=headers-seen")
    assert seen["x-amzn-sagemaker-inference-id"] == "mine"
    assert seen["content-type"] == "text/csv"  # the S3 object's, as the caller gives none
    assert seen["content-length"] == "5"
    assert not {"authorization", "x-amzn-sagemaker-inputlocation", "transfer-encoding", "content-encoding"} & set(seen)


def test_content_encoding_of_object_reaches_container(up: EndpointUp) -> None:
    packed = gzip.compress(b"input")
    up.client("s3").put_object(Bucket=BUCKET, Key="in/packed.gz", Body=packed, ContentEncoding="gzip")
    location = f"s3://{BUCKET}/in/packed.gz"
    assert up.submit("e", InputLocation=location).ended().outputs()[0]["body"] == packed
    [output] = up.submit("e", "headers-seen", InputLocation=location).ended().outputs()
    assert json.loads(output["body"])["content-encoding"] == "gzip"


def test_empty_input_is_valid(up: EndpointUp) -> None:
    assert up.submit("e", body=b"").ended().outputs()[0]["body"] == b""


def test_creation_sends_test_notification(up: EndpointUp) -> None:
    tests = eventually(lambda: [notice for notice in up.hear() if notice["eventName"] == "TestNotification"])
    assert tests[0] == {"eventVersion": "1.0", "eventSource": "aws:sagemaker", "eventName": "TestNotification"}


def test_metrics_are_in_cloudwatch(up: EndpointUp) -> None:
    up.submit("e").ended()
    for name in ("InvocationsProcessed", "TimeInBacklog", "TotalProcessingTime", "ModelLatency"):
        eventually(lambda name=name: variant_metric(up, name) > 0)  # type: ignore[misc]
    for name in ("RequestDownloadLatency", "ResponseUploadLatency"):
        eventually(lambda name=name: variant_metric(up, name) > 0)  # type: ignore[misc]
    eventually(lambda: up.metric("e", "ApproximateBacklogSize", "Maximum") is not None)


# Failures


@dataclass(frozen=True)
class Kind:
    do: str
    object: bytes | None
    """Beginning of the failure object; None for any text."""
    reason: str
    """Part of the notification's failureReason."""
    metrics: tuple[str, ...]
    line: str
    """Part of the log's line."""
    parameters: tuple[tuple[str, object], ...] = ()


KINDS = {
    "4xx": Kind(
        "status:400",
        b"the container says why: input",
        f"ClientError: Received client error (400) {SEE_LOGS}",
        ("InvocationFailures", "Invocation4XXErrors"),
        'Received client error (400) from primary with message "the container says why: input"',
    ),
    "5xx": Kind(
        "status:503",
        b"the container says why: input",
        f"ClientError: Received server error (503) {SEE_LOGS}",
        ("InvocationFailures", "Invocation5XXErrors"),
        'Received server error (503) from primary with message "the container says why: input"',
    ),
    "timeout": Kind("hang", None, "", ("InvocationFailures",), "", (("InvocationTimeoutSeconds", 1),)),
    "hang-up": Kind("hang-up", NO_ANSWER, "", ("InvocationFailures",), ""),
    "half": Kind("half", NO_ANSWER, "", ("InvocationFailures",), ""),
    "chunked": Kind("chunked", None, "", ("InvocationFailures",), "did not specify the required Content-Length header"),
    "endless": Kind("endless", None, "", ("InvocationFailures",), "did not specify the required Content-Length header"),
    "headers": Kind(
        "headers-of:4096", None, "", ("InvocationFailures",), "has headers with length greater than 4096 bytes"
    ),
    "huge headers": Kind(
        "headers-of:60000", None, "", ("InvocationFailures",), "has headers with length greater than 4096 bytes"
    ),
    "input": Kind(
        "echo",
        None,
        "",
        ("InvocationFailures", "RequestDownloadFailures"),
        "",
        (("InputLocation", f"s3://{BUCKET}/in/missing"),),
    ),
    "input bucket": Kind(
        "echo",
        None,
        "",
        ("InvocationFailures", "RequestDownloadFailures"),
        "",
        (("InputLocation", "s3://no-such-bucket/in"),),
    ),
    "input elsewhere": Kind(
        "echo",
        None,
        "",
        ("InvocationFailures", "RequestDownloadFailures"),
        "",
        (("InputLocation", "https://example.com/in"),),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_failure_leaves_all_its_traces(up: EndpointUp, name: str) -> None:
    kind = KINDS[name]
    before = {metric: variant_metric(up, metric) for metric in kind.metrics}
    sent = up.submit("e", kind.do, **dict(kind.parameters))  # type: ignore[arg-type]
    text = failed(sent)
    assert text.startswith(kind.object) if kind.object is not None else text
    notice = sent.notice()
    assert list(notice)[3:6] == ["invocationStatus", "failureReason", "requestParameters"]
    assert notice["invocationStatus"] == "Failed" and "responseBody" not in notice
    assert notice["failureReason"].startswith(kind.reason) and notice["failureReason"]
    for metric in kind.metrics:
        eventually(lambda metric=metric: variant_metric(up, metric) > before[metric])  # type: ignore[misc]
    lines = eventually(lambda: [line for line in up.data_log("e") if f"[{sent.inference_id}]" in line])
    assert len(lines) == 1 and "[sagemaker logs]" in lines[0] and kind.line in lines[0]
    assert "the container says why" not in up.log()


def test_timeout_closes_connection(up: EndpointUp) -> None:
    before = up.says.read_text().count("the caller hung up")
    failed(up.submit("e", "hang", InvocationTimeoutSeconds=1))
    eventually(lambda: up.says.read_text().count("the caller hung up") > before)


def test_dead_container_fails_request_and_is_replaced(up: EndpointUp) -> None:
    assert failed(up.submit("e", "die")).startswith(NO_ANSWER)
    assert up.submit("e").ended().outputs()


def test_headers_below_4096_bytes_are_accepted(up: EndpointUp) -> None:
    assert up.submit("e", "headers-of:3500").ended().outputs()[0]["body"] == b"ok"


def test_waiting_request_expires(up: EndpointUp) -> None:
    up.make_endpoint("asleep", instances=0)
    sent = up.submit("asleep", RequestTTLSeconds=60)  # a second on this clock
    kept = up.submit("asleep", RequestTTLSeconds=21_600)
    assert failed(sent)
    assert sent.notice()["invocationStatus"] == "Failed"
    eventually(lambda: variant_metric(up, "ExpiredRequests", endpoint="asleep") == 1)
    eventually(lambda: up.metric("asleep", "HasBacklogWithoutCapacity", "Maximum") == 1)
    assert kept.outputs() == kept.failures() == kept.notices() == []


def test_unwritable_output_is_failure(up: EndpointUp) -> None:
    up.make_endpoint("lost", S3OutputPath="s3://no-such-bucket/out")
    sent = up.submit("lost")
    assert failed(sent)
    assert sent.notice()["invocationStatus"] == "Failed"
    eventually(lambda: variant_metric(up, "ResponseUploadFailures", endpoint="lost") == 1)


def test_failure_without_path_leaves_notification_only(up: EndpointUp) -> None:
    up.make_endpoint("quiet", S3FailurePath=None)
    sent = up.submit("quiet", "status:500")
    assert sent.notice()["invocationStatus"] == "Failed"
    assert sent.failure is None and sent.outputs() == []


def test_responses_are_in_notifications_on_request(up: EndpointUp) -> None:
    topics = {
        "SuccessTopic": "arn:aws:sns:us-east-1:000000000000:good",
        "ErrorTopic": "arn:aws:sns:us-east-1:000000000000:bad",
        "IncludeInferenceResponseIn": ["SUCCESS_NOTIFICATION_TOPIC", "ERROR_NOTIFICATION_TOPIC"],
    }
    up.make_endpoint("telling", NotificationConfig=topics)
    small, large = up.submit("telling", body=b"small"), up.submit("telling", body=b"x" * (128 * 1024 + 1))
    bad = up.submit("telling", "status:500")
    assert small.notice()["responseBody"]["content"] == "c21hbGw="
    assert small.notice()["responseBody"]["encoding"] == "BASE64"
    assert "responseBody" not in large.notice()
    assert bad.notice()["responseBody"]["content"]


# A gateway that is killed


def test_next_gateway_finishes_requests_after_kill(tmp_path: Path) -> None:
    up = EndpointUp(tmp_path)
    try:
        up.make_places()
        up.make_endpoint("e")
        go = tmp_path / "go"
        running = [up.submit("e", f"wait:{go}", body=str(number).encode()) for number in range(4)]
        waiting = [up.submit("e", body=str(number).encode()) for number in range(4, 8)]
        eventually(lambda: up.says.read_text().count("took do=wait") == 4)
        up.kill()
        eventually(lambda: up.says.read_text().count("the caller hung up") == 4)
        up.start()
        go.touch()
        for number, sent in enumerate([*running, *waiting]):
            assert sent.ended().outputs()[0]["body"] == str(number).encode()
            assert sent.failures() == [] and sent.notice()["invocationStatus"] == "Completed"
    finally:
        up.close()


def test_request_is_redelivered_after_container_death(tmp_path: Path) -> None:
    up = EndpointUp(tmp_path, "--on-no-answer", "redeliver")
    try:
        up.make_places()
        up.make_endpoint("e")
        sent = up.submit("e", f"die-once:{tmp_path / 'died'}").ended()
        assert sent.outputs()[0]["body"] == b"input" and sent.failures() == []
        assert up.says.read_text().count("took do=die-once") == 2
        assert failed(up.submit("e", "die")).startswith(NO_ANSWER)  # the second attempt was the last
    finally:
        up.close()
