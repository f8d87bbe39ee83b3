from __future__ import annotations

import datetime
import http.client
import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from testing.endpoint.gateway_process import GatewayProcess, gateway_process
from testing.endpoint.upstream import Upstream
from testing.server import TIMEOUT_S, eventually

MIB = 1 << 20
SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/{}/aws4_request, SignedHeaders=host, Signature=0"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway_process(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def s3(gateway: GatewayProcess) -> Any:
    client = gateway.client("s3")
    client.create_bucket(Bucket="bucket")
    return client


def ask(gateway: GatewayProcess, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> httpx.Response:
    return httpx.request(method, f"{gateway.url}{path}", headers=headers, content=body, trust_env=False)


def error_of(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    return error.value.response["Error"]["Code"], error.value.response["ResponseMetadata"]["HTTPStatusCode"]


# What the backend does, through the one port


def test_objects_round_trip(s3: Any) -> None:
    key = "folder/ünïcode +&%/キー ?#.json"
    s3.put_object(Bucket="bucket", Key=key, Body=b'{"a": 1}', ContentType="application/json", Metadata={"by": "me"})
    head = s3.head_object(Bucket="bucket", Key=key)
    assert (head["ContentLength"], head["ContentType"], head["Metadata"]) == (8, "application/json", {"by": "me"})
    assert s3.get_object(Bucket="bucket", Key=key)["Body"].read() == b'{"a": 1}'
    assert s3.get_object(Bucket="bucket", Key=key, Range="bytes=2-4")["Body"].read() == b'a":'
    listed = s3.list_objects_v2(Bucket="bucket", Prefix="folder/")["Contents"]
    assert [item["Key"] for item in listed] == [key]
    s3.put_object(Bucket="bucket", Key="empty", Body=b"")
    assert s3.get_object(Bucket="bucket", Key="empty")["Body"].read() == b""
    s3.delete_object(Bucket="bucket", Key=key)
    with pytest.raises(ClientError) as error:
        s3.head_object(Bucket="bucket", Key=key)
    assert error_of(error) == ("404", 404)


def test_body_of_unknown_length_is_forwarded(s3: Any) -> None:
    """The body is aws-chunked with a trailing checksum, after Expect: 100-continue."""
    s3.upload_fileobj(io.BytesIO(b"x" * 300_000), "bucket", "stream", ExtraArgs={"ChecksumAlgorithm": "SHA256"})
    assert s3.get_object(Bucket="bucket", Key="stream")["Body"].read() == b"x" * 300_000


def test_64_mib_multipart_upload_round_trips(s3: Any) -> None:
    data = os.urandom(MIB) * 64
    transfer = TransferConfig(multipart_threshold=16 * MIB, multipart_chunksize=16 * MIB, max_concurrency=2)
    s3.upload_fileobj(io.BytesIO(data), "bucket", "large", Config=transfer)
    assert s3.head_object(Bucket="bucket", Key="large")["ETag"].endswith('-4"')
    assert s3.get_object(Bucket="bucket", Key="large")["Body"].read() == data


def test_presigned_urls_work(s3: Any) -> None:
    where = {"Bucket": "bucket", "Key": "prä signed"}
    httpx.put(s3.generate_presigned_url("put_object", where), content=b"by URL", trust_env=False).raise_for_status()
    assert httpx.get(s3.generate_presigned_url("get_object", where), trust_env=False).content == b"by URL"


@pytest.mark.parametrize("host", ["bucket.localhost", "bucket.s3.localhost", "bucket.s3.us-east-1.localhost"])
def test_bucket_may_be_host_name(gateway: GatewayProcess, s3: Any, host: str) -> None:
    headers = {"authorization": SIGNED.format("s3"), "host": f"{host}:{gateway.port}"}
    assert ask(gateway, "PUT", "/virtual/key", headers, b"virtual").status_code == 200
    assert s3.get_object(Bucket="bucket", Key="virtual/key")["Body"].read() == b"virtual"
    assert ask(gateway, "GET", "/virtual/key", {"host": host}).content == b"virtual"


def test_key_named_like_emulator_reset_works(gateway: GatewayProcess, s3: Any) -> None:
    headers = {"authorization": SIGNED.format("s3"), "host": "bucket.localhost"}
    ask(gateway, "PUT", "/_ministack/reset", headers, b"a key")
    ask(gateway, "POST", "/_ministack/reset", headers)
    assert s3.get_object(Bucket="bucket", Key="_ministack/reset")["Body"].read() == b"a key"


def test_notifications_go_from_topics_to_queues(gateway: GatewayProcess) -> None:
    sns, sqs = gateway.client("sns"), gateway.client("sqs")
    queue = sqs.create_queue(QueueName="notices")["QueueUrl"]
    assert queue == f"{gateway.url}/000000000000/notices"
    topic = sns.create_topic(Name="notices")["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint="arn:aws:sqs:us-east-1:000000000000:notices")
    waiting = threading.Timer(0.3, lambda: sns.publish(TopicArn=topic, Message="here it is"))
    waiting.start()
    [message] = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=20)["Messages"]
    assert json.loads(message["Body"])["Message"] == "here it is"
    waiting.join()


def test_other_services_answer(gateway: GatewayProcess) -> None:
    assert gateway.client("sts").get_caller_identity()["Account"] == "000000000000"
    iam = gateway.client("iam")
    role = iam.create_role(RoleName="role", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    assert iam.get_role(RoleName="role")["Role"]["Arn"] == role == "arn:aws:iam::000000000000:role/role"
    repository = gateway.client("ecr").create_repository(repositoryName="image")["repository"]
    assert repository["repositoryArn"] == "arn:aws:ecr:us-east-1:000000000000:repository/image"
    logs = gateway.client("logs")
    logs.create_log_group(logGroupName="group")
    logs.create_log_stream(logGroupName="group", logStreamName="stream")
    event = {"timestamp": int(time.time() * 1000), "message": "line"}
    logs.put_log_events(logGroupName="group", logStreamName="stream", logEvents=[event])
    lines = logs.get_log_events(logGroupName="group", logStreamName="stream")["events"]
    assert [line["message"] for line in lines] == ["line"]


def test_metrics_can_be_put_and_read(gateway: GatewayProcess) -> None:
    cloudwatch = gateway.client("cloudwatch")
    now = datetime.datetime.now(datetime.UTC)
    data = [{"MetricName": f"metric-{n}", "Value": n, "Unit": "Count", "Timestamp": now} for n in range(200)]
    cloudwatch.put_metric_data(Namespace="ours", MetricData=data)  # long enough to be sent compressed
    span = {"StartTime": now - datetime.timedelta(minutes=5), "EndTime": now + datetime.timedelta(minutes=5)}
    answer = cloudwatch.get_metric_statistics(
        Namespace="ours", MetricName="metric-7", Period=60, Statistics=["Sum"], **span
    )
    assert [point["Sum"] for point in answer["Datapoints"]] == [7]


# What is ours


def test_sagemaker_goes_to_its_handler(gateway: GatewayProcess) -> None:
    told = gateway.client("sagemaker").list_endpoint_configs(NameContains="x")["NextToken"]
    assert told == 'POST / {"NameContains": "x"}'


def test_invocations_go_to_their_handler(gateway: GatewayProcess) -> None:
    runtime = gateway.client("sagemaker-runtime")
    answer = runtime.invoke_endpoint(EndpointName="name", Body=b"x" * 70_000)
    assert answer["InvokedProductionVariant"] == "/endpoints/name/invocations?"
    assert answer["Body"].read() == b"70000"


def test_sagemaker_needs_no_signature(gateway: GatewayProcess) -> None:
    answer = ask(gateway, "POST", "/", {"x-amz-target": "SageMaker.ListEndpointConfigs"}, b"{}")
    assert answer.json()["NextToken"] == "POST / {}"
    assert ask(gateway, "POST", "/endpoints/name/invocations", {}, b"1").text == "1"


def test_handler_error_is_internal_failure(gateway: GatewayProcess) -> None:
    runtime = gateway.client("sagemaker-runtime", retries={"total_max_attempts": 1})
    with pytest.raises(ClientError) as error:
        runtime.invoke_endpoint(EndpointName="name", Body=b"1", CustomAttributes="raise")
    assert error_of(error) == ("InternalFailure", 500)


def test_body_beyond_handler_limit_is_refused(gateway: GatewayProcess) -> None:
    with pytest.raises(ClientError) as error:
        gateway.client("sagemaker").list_endpoint_configs(NameContains="x" * 60, NextToken="y" * 1000)
    assert error_of(error) == ("RequestEntityTooLargeException", 413)


def test_unknown_service_is_not_implemented(gateway: GatewayProcess) -> None:
    for service, call, code in [
        ("application-autoscaling", lambda c: c.describe_scalable_targets(ServiceNamespace="sagemaker"), None),
        ("dynamodb", lambda c: c.list_tables(), None),
        ("lambda", lambda c: c.list_functions(), None),
        ("ec2", lambda c: c.describe_instances(), "InvalidAction"),
        ("route53", lambda c: c.list_hosted_zones(), "InvalidAction"),
    ]:
        with pytest.raises(ClientError) as error:
            call(gateway.client(service))
        assert error_of(error) == (code or "UnknownOperationException", 400)


@pytest.mark.parametrize("service", ["sns", "logs", "cloudwatch", "ecr"])
def test_operation_missing_in_backend_is_error(gateway: GatewayProcess, service: str) -> None:
    client = gateway.client(service)
    lacking = {
        "sns": lambda: client.list_sms_sandbox_phone_numbers(),
        "logs": lambda: client.list_anomalies(),
        "cloudwatch": lambda: client.list_metric_streams(),
        "ecr": lambda: client.describe_pull_through_cache_rules(),
    }[service]
    with pytest.raises(ClientError) as error:
        lacking()
    assert error_of(error)[0] in ("InvalidAction", "InvalidOperationException")


def test_gaps_of_emulator_do_no_harm(gateway: GatewayProcess, s3: Any) -> None:
    s3.create_bucket(Bucket="empty")
    s3.put_object(Bucket="bucket", Key="kept", Body=b"kept")
    for call in [
        lambda: s3.delete_bucket_inventory_configuration(Bucket="empty", Id="1"),
        lambda: s3.rename_object(Bucket="bucket", Key="kept", RenameSource="/bucket/empty"),
        lambda: s3.get_bucket_policy_status(Bucket="bucket"),
    ]:
        with pytest.raises(ClientError) as error:
            call()
        assert error_of(error) == ("NotImplemented", 501)
    for path, host in [("/bucket/kept?encryption", "127.0.0.1"), ("/kept?encryption", "bucket.localhost")]:
        headers = {"authorization": SIGNED.format("s3"), "host": host}
        assert ask(gateway, "PUT", path, headers, b"harm").status_code == 501
    s3.head_bucket(Bucket="empty")
    assert s3.get_object(Bucket="bucket", Key="kept")["Body"].read() == b"kept"
    assert s3.get_bucket_encryption(Bucket="bucket")


# Web pages


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:4566", "localhost", "LocalHost:1", "[::1]:4566", "[::1]"])
def test_local_host_names_are_served(gateway: GatewayProcess, host: str) -> None:
    assert ask(gateway, "GET", "/_longhaul/health", {"host": host}).json() == {"status": "ok"}


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "rebound.example.com"},
        {"host": "127.0.0.1.nip.io:4566"},
        {"host": "localhost.example.com"},
        {"host": "evil.com:127"},
        {"host": ""},
        {"origin": "https://example.com"},
        {"origin": "http://localhost:3000"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_web_pages_are_refused(gateway: GatewayProcess, headers: dict[str, str], method: str) -> None:
    target = {"x-amz-target": "SageMaker.ListEndpointConfigs"}
    for more in ({}, target):
        answer = ask(gateway, method, "/", headers | more)
        assert answer.status_code == 403
        assert "AccessDenied" in answer.text
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_own_page_may_send_requests(gateway: GatewayProcess, s3: Any) -> None:
    headers = {"origin": gateway.url, "sec-fetch-site": "same-origin", "authorization": SIGNED.format("s3")}
    answer = ask(gateway, "GET", "/bucket", headers)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path",
    ["/_ministack/reset", "/_ministack/health", "/_localstack/health", "/_aws/x", "/_longhaul/x", "/%5fministack/x"],
)
def test_emulator_routes_are_hidden(gateway: GatewayProcess, path: str) -> None:
    assert ask(gateway, "POST", path, {}).status_code == 404
    assert ask(gateway, "POST", path, {"authorization": SIGNED.format("s3")}).status_code == 404
    assert ask(gateway, "POST", path, {"authorization": SIGNED.format("sns"), "host": "a.localhost"}).status_code == 404


# Streams


def test_200_mib_pass_in_little_memory(gateway: GatewayProcess, s3: Any) -> None:
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    most = 0

    def parts() -> Iterator[bytes]:
        nonlocal most
        part = bytes(MIB)
        for number in range(200):
            if number % 10 == 0:
                most = max(most, process.memory_info().rss)
            yield part

    headers = {"authorization": SIGNED.format("s3"), "content-length": str(200 * MIB)}
    url = f"{gateway.url}/bucket/huge"
    assert httpx.put(url, headers=headers, content=parts(), timeout=TIMEOUT_S, trust_env=False).status_code == 200
    size = 0
    with httpx.stream("GET", url, timeout=TIMEOUT_S, trust_env=False) as answer:
        for part in answer.iter_raw(MIB):
            size += len(part)
            most = max(most, process.memory_info().rss)
    assert size == 200 * MIB
    assert most - before < 24 * MIB
    s3.delete_object(Bucket="bucket", Key="huge")


def test_expecting_client_gets_100_continue(gateway: GatewayProcess, s3: Any) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=TIMEOUT_S) as sock:
        head = "PUT /bucket/expected HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n"
        sock.sendall(f"{head}Authorization: {SIGNED.format('s3')}\r\n\r\n".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 100")
        sock.sendall(b"body")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    assert s3.get_object(Bucket="bucket", Key="expected")["Body"].read() == b"body"


def test_small_responses_do_not_wait(gateway: GatewayProcess) -> None:
    with httpx.Client(trust_env=False) as client:
        client.get(f"{gateway.url}/_longhaul/health")
        started = time.monotonic()
        for _ in range(40):
            client.get(f"{gateway.url}/_longhaul/health")
    assert time.monotonic() - started < 40 * 0.03


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


@pytest.fixture(scope="module")
def outward(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[GatewayProcess]:
    """A gateway whose backend is `upstream`."""
    threading.Thread(target=upstream.greet).start()
    with gateway_process(tmp_path_factory.mktemp("outward"), backend=upstream.url) as gateway:
        yield gateway


def test_gone_client_ends_its_request(outward: GatewayProcess, upstream: Upstream) -> None:
    client = http.client.HTTPConnection("127.0.0.1", outward.port)
    client.request("POST", "/queue", body=b"waits for a message")
    with upstream.accept() as sock:
        client.close()
        while sock.recv(65536):
            pass  # reads the rest of the request, then its end


def test_aborted_upload_stays_incomplete(outward: GatewayProcess, upstream: Upstream) -> None:
    client = socket.create_connection(("127.0.0.1", outward.port))
    client.sendall(b"PUT /bucket/key HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + bytes(100_000))
    with upstream.accept() as sock:
        client.close()
        size = 0
        while part := sock.recv(65536):
            size += len(part)
    assert size < 1_000_000


def test_aborted_response_stays_incomplete(outward: GatewayProcess, upstream: Upstream) -> None:
    client = http.client.HTTPConnection("127.0.0.1", outward.port, timeout=TIMEOUT_S)
    client.request("GET", "/bucket/key")
    with upstream.accept() as sock:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789")
        answer = client.getresponse()
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    client.close()


def test_headers_pass_except_hop_by_hop(outward: GatewayProcess, upstream: Upstream) -> None:
    with socket.create_connection(("127.0.0.1", outward.port), timeout=TIMEOUT_S) as client:
        client.sendall(
            b"GET /bucket/k%C3%A9y%2F%20+?a=b%2Fc&d HTTP/1.1\r\nHost: localhost:1\r\nConnection: close, X-Hop\r\n"
            b"X-Hop: 1\r\nTE: trailers\r\nX-Amz-Meta-A: \xc3\xa9\r\nAccept-Encoding: gzip\r\n\r\n"
        )
        with upstream.accept() as sock:
            head = upstream.head.lower()
            sock.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Encoding: gzip\r\nX-Amz-Meta-A: \xc3\xa9\r\n"
                b"Access-Control-Allow-Origin: *\r\nX-Twice: 1\r\nX-Twice: 2\r\nKeep-Alive: timeout=5\r\n\r\nbody"
            )
            answer = b""
            while part := client.recv(65536):
                answer += part
    assert head.startswith(b"get /bucket/k%c3%a9y%2f%20+?a=b%2fc&d http/1.1\r\n")
    for line in (b"host: localhost:1", b"x-amz-meta-a: \xc3\xa9", b"accept-encoding: gzip"):
        assert line + b"\r\n" in head
    for name in (b"x-hop", b"te:", b"user-agent", b"transfer-encoding", b"content-length"):
        assert name not in head
    answer = answer.lower()
    assert answer.endswith(b"\r\n\r\nbody")
    for line in (b"content-encoding: gzip", b"x-amz-meta-a: \xc3\xa9", b"x-twice: 1", b"x-twice: 2"):
        assert line + b"\r\n" in answer
    for name in (b"access-control", b"keep-alive"):
        assert name not in answer


def test_dead_backend_is_service_unavailable(outward: GatewayProcess, upstream: Upstream) -> None:
    upstream.close()
    for service, call in [
        ("s3", lambda c: c.head_bucket(Bucket="bucket")),
        ("s3", lambda c: c.list_buckets()),
        ("sqs", lambda c: c.list_queues()),
        ("sns", lambda c: c.list_topics()),
        ("cloudwatch", lambda c: c.list_metrics()),
    ]:
        with pytest.raises(ClientError) as error:
            call(outward.client(service, retries={"total_max_attempts": 1}))
        assert error_of(error) in (("ServiceUnavailable", 503), ("503", 503))


# Kills


def test_state_survives_gateway_and_backend_kills(tmp_path: Path) -> None:
    with gateway_process(tmp_path) as gateway:
        sqs, s3 = gateway.client("sqs"), gateway.client("s3")
        queue = sqs.create_queue(QueueName="queue")["QueueUrl"]
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="key", Body=b"object")
        sqs.send_message(QueueUrl=queue, MessageBody="message")
        pid = gateway.backend_pid

        gateway.kill()
        gateway.start()
        assert gateway.backend_pid == pid
        [message] = sqs.receive_message(QueueUrl=queue)["Messages"]
        assert message["Body"] == "message"

        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert s3.get_object(Bucket="bucket", Key="key")["Body"].read() == b"object"  # boto3 retries until it is back
        assert eventually(lambda: gateway.backend_pid) != pid
        with pytest.raises(sqs.exceptions.QueueDoesNotExist):
            sqs.receive_message(QueueUrl=queue)
