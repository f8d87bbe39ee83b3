from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from endpoint.data_plane import runtime
from endpoint.data_plane.runtime import MAX_INLINE_BYTES, MAX_SYNC_BYTES, locations
from testing.endpoint.runtime_port import RuntimePort

INPUT = "s3://bucket/in/documents.jsonl"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[RuntimePort]:
    made = RuntimePort(tmp_path)
    yield made
    made.close()


@pytest.fixture
def asynchronous(port: RuntimePort) -> RuntimePort:
    port.endpoint("e")
    return port


@pytest.fixture
def synchronous(port: RuntimePort) -> RuntimePort:
    port.endpoint("e", output=None)
    return port


def submit(port: RuntimePort, **parameters: Any) -> dict[str, Any]:
    given = {"InputLocation": INPUT} if "Body" not in parameters else {}
    answer: dict[str, Any] = port.client.invoke_endpoint_async(**{"EndpointName": "e"} | given | parameters)
    return answer


def invoke(port: RuntimePort, **parameters: Any) -> dict[str, Any]:
    answer: dict[str, Any] = port.client.invoke_endpoint(**{"EndpointName": "e", "Body": b"{}"} | parameters)
    return answer


def refused(call: Any, *arguments: Any, code: str = "ValidationError", status: int = 400, **parameters: Any) -> Any:
    with pytest.raises(ClientError) as error:
        call(*arguments, **parameters)
    response = error.value.response
    assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == (code, status)
    return response


# InvokeEndpointAsync


def test_accepted_request_gets_202_and_locations(asynchronous: RuntimePort) -> None:
    answer = submit(asynchronous)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    uuid.UUID(answer["InferenceId"])
    [job] = asynchronous.jobs()
    assert answer["OutputLocation"] == f"s3://bucket/out/{job['id']}.out"
    assert answer["FailureLocation"] == f"s3://bucket/failed/{job['id']}-error.out"
    assert job["id"] != answer["InferenceId"]
    assert asynchronous.dispatcher.wakes == 1


def test_request_fields_are_queued(asynchronous: RuntimePort) -> None:
    answer = submit(
        asynchronous,
        ContentType="application/jsonlines",
        Accept="application/json",
        CustomAttributes="timeout=1800;job=a",
        InferenceId="mine",
        RequestTTLSeconds=60,
        InvocationTimeoutSeconds=3600,
    )
    [job] = asynchronous.jobs()
    assert answer["InferenceId"] == job["inference_id"] == "mine"
    assert (job["endpoint"], job["variant"], job["state"]) == ("e", "main", "waiting")
    assert (job["input_location"], job["body"]) == (INPUT, None)
    assert (job["content_type"], job["accept"]) == ("application/jsonlines", "application/json")
    assert (job["custom_attributes"], job["timeout_s"]) == ("timeout=1800;job=a", 3600)
    assert job["expires_at"] - job["accepted_at"] == pytest.approx(60)
    assert job["accepted_at"] == pytest.approx(time.time(), abs=30)


def test_default_ttl_is_six_hours_timeout_15_minutes(asynchronous: RuntimePort) -> None:
    submit(asynchronous)
    [job] = asynchronous.jobs()
    assert job["timeout_s"] == 900
    assert job["expires_at"] - job["accepted_at"] == pytest.approx(21_600)


def test_quick_clock_shortens_ttl_but_not_timeout(tmp_path: Path) -> None:
    port = RuntimePort(tmp_path, time_scale=60.0)
    port.endpoint()
    submit(port, RequestTTLSeconds=600, InvocationTimeoutSeconds=600)
    [job] = port.jobs()
    port.close()
    assert job["expires_at"] - job["accepted_at"] == pytest.approx(10)
    assert job["timeout_s"] == 600


def test_body_is_stored_unchanged(asynchronous: RuntimePort) -> None:
    body = bytes(range(256)) * (MAX_INLINE_BYTES // 256)
    assert len(body) == MAX_INLINE_BYTES
    submit(asynchronous, Body=body)
    [job] = asynchronous.jobs()
    assert (job["body"], job["input_location"]) == (body, None)


def test_a_longer_body_is_refused(asynchronous: RuntimePort) -> None:
    refused(submit, asynchronous, Body=b"x" * (MAX_INLINE_BYTES + 1))
    assert asynchronous.jobs() == []


def test_request_needs_body_or_input_location(asynchronous: RuntimePort) -> None:
    refused(submit, asynchronous, Body=b"x", InputLocation=INPUT)
    refused(asynchronous.client.invoke_endpoint_async, EndpointName="e")
    assert asynchronous.jobs() == []


@pytest.mark.parametrize(
    "parameters",
    [
        {"InputLocation": "ftp://bucket/in"},
        {"InputLocation": "s3://" + "x" * 1024},
        {"ContentType": "x" * 1025},
        {"Accept": "x" * 1025},
        {"CustomAttributes": "x" * 1025},
        {"InferenceId": "x" * 65},
        {"RequestTTLSeconds": 59},
        {"RequestTTLSeconds": 21_601},
        {"InvocationTimeoutSeconds": 0},
        {"InvocationTimeoutSeconds": 3601},
        {"S3OutputPathExtension": "s3://elsewhere"},
        {"S3OutputPathExtension": "a b"},
        {"Filename": "a.b.c"},
        {"Filename": "../x"},
        {"Filename": "x" * 33},
        {"EndpointName": "-e"},
    ],
    ids=str,
)
def test_parameters_beyond_limits_are_refused(asynchronous: RuntimePort, parameters: dict[str, Any]) -> None:
    message = refused(submit, asynchronous, **parameters)["Error"]["Message"]
    assert message.startswith("1 validation error detected: ") and "failed to satisfy constraint" in message
    assert asynchronous.jobs() == []


def test_repeated_inference_id_is_second_request(asynchronous: RuntimePort) -> None:
    first, second = (submit(asynchronous, InferenceId="again") for _ in range(2))
    assert first["OutputLocation"] != second["OutputLocation"]
    assert [job["inference_id"] for job in asynchronous.jobs()] == ["again", "again"]


def test_no_failure_path_means_no_failure_location(port: RuntimePort) -> None:
    port.endpoint(output={"S3OutputPath": "s3://bucket/out"})
    answer = submit(port)
    assert "FailureLocation" not in answer
    assert port.jobs()[0]["failure_location"] is None


def test_filename_and_extension_are_in_both_locations(asynchronous: RuntimePort) -> None:
    answer = submit(asynchronous, Filename="report.json", S3OutputPathExtension="2026/may")
    assert answer["OutputLocation"] == "s3://bucket/out/2026/may/report.json"
    assert answer["FailureLocation"] == "s3://bucket/failed/2026/may/report-error.json"


@pytest.mark.parametrize(
    ("root", "extension", "filename", "output"),
    [
        ("s3://b", None, None, "s3://b/id.out"),
        ("s3://b/", None, None, "s3://b/id.out"),
        ("s3://b/p/q/", "x/", None, "s3://b/p/q/x/id.out"),
        ("s3://b/p", "/x", "plain", "s3://b/p/x/plain"),
        ("https://b.s3.us-east-1.amazonaws.com/p/", None, None, "https://b.s3.us-east-1.amazonaws.com/p/id.out"),
    ],
)
def test_paths_are_joined_with_one_slash(root: str, extension: str | None, filename: str | None, output: str) -> None:
    assert locations({"S3OutputPath": root}, "id", extension, filename) == (output, None)


@pytest.mark.parametrize("filename", [None, "a", "a.json", "a."])
def test_output_and_failure_in_one_path_differ(filename: str | None) -> None:
    same = {"S3OutputPath": "s3://b/p", "S3FailurePath": "s3://b/p"}
    output, failure = locations(same, "id", None, filename)
    assert output != failure


# The kinds of endpoints


def test_an_unknown_endpoint_is_not_found(port: RuntimePort) -> None:
    for call in (submit, invoke):
        response = refused(call, port)
        assert response["Error"]["Message"] == "Endpoint e of account 000000000000 not found."


def test_an_endpoint_that_changes_takes_requests(port: RuntimePort) -> None:
    port.endpoint(status="Updating")
    submit(port)
    assert len(port.jobs()) == 1


@pytest.mark.parametrize("status", ["Creating", "Failed", "Deleting"])
def test_endpoint_not_in_service_refuses_requests(port: RuntimePort, status: str) -> None:
    port.endpoint(status=status)
    refused(submit, port)
    assert port.jobs() == []


def test_requests_are_accepted_without_instance(asynchronous: RuntimePort) -> None:
    asynchronous.fleet.instances.clear()
    submit(asynchronous)
    assert len(asynchronous.jobs()) == 1


def test_endpoint_takes_one_kind_of_request(port: RuntimePort) -> None:
    port.endpoint("a")
    port.endpoint("s", output=None)
    refused(invoke, port, EndpointName="a")
    refused(submit, port, EndpointName="s")
    assert port.jobs() == [] and port.container.asked == []


def test_unknown_operation_is_refused(asynchronous: RuntimePort) -> None:
    call = asynchronous.client.invoke_endpoint_with_response_stream
    refused(call, EndpointName="e", Body=b"", code="UnknownOperationException")


# InvokeEndpoint


def test_the_containers_answer_comes_back(synchronous: RuntimePort) -> None:
    synchronous.container.body = b"\x00answer\xff"
    synchronous.container.headers = {"Content-Type": "a/b", "X-Amzn-SageMaker-Custom-Attributes": "used=7"}
    answer = invoke(synchronous)
    assert answer["Body"].read() == b"\x00answer\xff"
    assert (answer["ContentType"], answer["InvokedProductionVariant"]) == ("a/b", "main")
    assert answer["CustomAttributes"] == "used=7"


def test_container_gets_body_and_callers_headers(synchronous: RuntimePort) -> None:
    headers = {"ContentType": "c/t", "Accept": "a/c", "CustomAttributes": "k=v", "InferenceId": "mine"}
    invoke(synchronous, Body=b"\x00in\xff", **headers)
    [(path, got, body)] = synchronous.container.asked
    assert (path, body) == ("/invocations", b"\x00in\xff")
    assert (got["content-type"], got["accept"]) == ("c/t", "a/c")
    assert got["x-amzn-sagemaker-custom-attributes"] == "k=v"
    assert got["x-amzn-sagemaker-inference-id"] == "mine"
    assert "authorization" not in got


@pytest.mark.parametrize("status", [400, 413, 500, 503])
def test_containers_error_is_model_error_with_message(synchronous: RuntimePort, status: int) -> None:
    synchronous.container.status, synchronous.container.body = status, b'{"error": "why"}'
    response = refused(invoke, synchronous, code="ModelError", status=424)
    assert (response["OriginalStatusCode"], response["OriginalMessage"]) == (status, '{"error": "why"}')
    assert response["LogStreamArn"].endswith("log-group:/aws/sagemaker/Endpoints/e")
    whose = "client" if status < 500 else "server"
    assert f'Received {whose} error ({status}) from primary with message "{{"error": "why"}}"' in str(
        response["Error"]["Message"]
    )


def test_hangup_is_model_error_without_status(synchronous: RuntimePort) -> None:
    synchronous.container.status = None
    response = refused(invoke, synchronous, code="ModelError", status=424)
    assert response["OriginalStatusCode"] == 0


def test_slow_answer_is_model_error(synchronous: RuntimePort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "SYNC_TIMEOUT_S", 0.2)
    synchronous.container.may_answer.clear()
    response = refused(invoke, synchronous, code="ModelError", status=424)
    synchronous.container.may_answer.set()
    assert response["OriginalStatusCode"] == 0
    assert response["OriginalMessage"].startswith("Your invocation timed out while waiting for a response")


def test_no_instance_means_service_unavailable(synchronous: RuntimePort) -> None:
    synchronous.fleet.instances.clear()
    refused(invoke, synchronous, code="ServiceUnavailable", status=503)


def test_body_has_at_most_six_mib(synchronous: RuntimePort) -> None:
    invoke(synchronous, Body=b"x" * MAX_SYNC_BYTES)
    assert len(synchronous.container.asked[0][2]) == MAX_SYNC_BYTES
    refused(invoke, synchronous, Body=b"x" * (MAX_SYNC_BYTES + 1))


def test_answer_has_at_most_six_mib(synchronous: RuntimePort) -> None:
    synchronous.container.body = b"x" * MAX_SYNC_BYTES
    assert len(invoke(synchronous)["Body"].read()) == MAX_SYNC_BYTES
    synchronous.container.body += b"x"
    refused(invoke, synchronous, code="ModelError", status=424)


@pytest.mark.parametrize(
    "parameters", [{"TargetModel": "m"}, {"TargetVariant": "other"}, {"InferenceComponentName": "c"}], ids=str
)
def test_unsupported_parameters_are_refused(synchronous: RuntimePort, parameters: dict[str, Any]) -> None:
    refused(invoke, synchronous, **parameters)
    assert synchronous.container.asked == []


def test_answer_file_is_removed_after_answer(synchronous: RuntimePort, tmp_path: Path) -> None:
    invoke(synchronous)
    synchronous.container.status = 500
    refused(invoke, synchronous, code="ModelError", status=424)
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"endpoint.sqlite"}
