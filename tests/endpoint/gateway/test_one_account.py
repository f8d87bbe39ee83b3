"""All access keys stand for the endpoint's one account, whatever account the backend would take from them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from endpoint.gateway.one_account import sign_header_for, sign_query_for
from testing.endpoint.gateway_process import GatewayProcess, gateway_process

ACCOUNT = "000000000000"
OTHER = "123456789012"
USER_KEY = "AKIAIOSFODNN7EXAMPLE"
SESSION_KEY = "ASIAIOSFODNN7EXAMPLE"


@pytest.mark.parametrize(
    ("key", "service", "sent"),
    [
        (OTHER, "s3", ACCOUNT),
        (OTHER, "sts", ACCOUNT),
        ("test", "sqs", ACCOUNT),
        (USER_KEY, "s3", ACCOUNT),
        (USER_KEY, "iam", USER_KEY),
        (USER_KEY, "sts", USER_KEY),
        (SESSION_KEY, "sns", ACCOUNT),
        (SESSION_KEY, "iam", ACCOUNT),
        (SESSION_KEY, "sts", SESSION_KEY),
    ],
)
def test_keys_stand_for_account(key: str, service: str, sent: str) -> None:
    rest = f"20260101/us-east-1/{service}/aws4_request"
    for scheme in ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"):
        header = f"{scheme} Credential={{}}/{rest}, SignedHeaders=host;x-amz-date, Signature=0a1b"
        assert sign_header_for(ACCOUNT, service, header.format(key)) == header.format(sent)
    assert sign_header_for(ACCOUNT, service, f"AWS {key}:c2lnbmF0dXJl") == f"AWS {sent}:c2lnbmF0dXJl"
    quoted = rest.replace("/", "%2F")
    for query in (f"a=b%2Fc&X-Amz-Credential={{}}%2F{quoted}&X-Amz-Date=1", f"X-Amz-Credential={{}}/{rest}"):
        assert sign_query_for(ACCOUNT, service, query.format(key)) == query.format(sent)
    query = "AWSAccessKeyId={}&Signature=c2ln&Expires=1"
    assert sign_query_for(ACCOUNT, service, query.format(key)) == query.format(sent)


@pytest.mark.parametrize("text", ["", "list-type=2&prefix=Credential=x/y", "Bearer 123456789012", "AWS"])
def test_other_text_stays(text: str) -> None:
    assert sign_query_for(ACCOUNT, "s3", text) == text
    if "prefix" not in text:
        assert sign_header_for(ACCOUNT, "s3", text) == text


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway_process(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


def test_identity_has_the_one_account(gateway: GatewayProcess) -> None:
    identity = gateway.client("sts", key=OTHER).get_caller_identity()
    assert (identity["Account"], identity["Arn"]) == (ACCOUNT, f"arn:aws:iam::{ACCOUNT}:root")


@pytest.mark.parametrize("signature", ["s3v4", "s3"], ids=["version 4", "version 2"])
def test_buckets_are_everyones(gateway: GatewayProcess, signature: str) -> None:
    other = gateway.client("s3", key=OTHER, signature_version=signature)
    bucket = f"bucket-{signature}"
    other.create_bucket(Bucket=bucket)
    gateway.client("s3").put_object(Bucket=bucket, Key="a", Body=b"by test")
    assert other.get_object(Bucket=bucket, Key="a")["Body"].read() == b"by test"
    url = other.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "b"})
    httpx.put(url, content=b"by URL", trust_env=False).raise_for_status()
    other.copy_object(Bucket=bucket, Key="c", CopySource={"Bucket": bucket, "Key": "b"})
    assert gateway.client("s3").get_object(Bucket=bucket, Key="c")["Body"].read() == b"by URL"


def test_presigned_url_expires(gateway: GatewayProcess) -> None:
    other = gateway.client("s3", key=OTHER, signature_version="s3v4")
    other.create_bucket(Bucket="expiring")
    url = other.generate_presigned_url("head_bucket", {"Bucket": "expiring"}, ExpiresIn=60)
    assert httpx.head(url, trust_env=False).status_code == 200
    long_ago = re.sub(r"X-Amz-Date=\d{4}", "X-Amz-Date=2020", url)
    assert httpx.head(long_ago, trust_env=False).status_code == 403


def test_topics_and_queues_are_everyones(gateway: GatewayProcess) -> None:
    sqs, sns = gateway.client("sqs", key=OTHER), gateway.client("sns", key=OTHER)
    url = sqs.create_queue(QueueName="notices")["QueueUrl"]
    assert url == f"{gateway.url}/{ACCOUNT}/notices"
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    topic = sns.create_topic(Name="notices")["TopicArn"]
    assert topic == f"arn:aws:sns:us-east-1:{ACCOUNT}:notices"
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    gateway.client("sns").publish(TopicArn=topic, Message="by test")
    (message,) = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=20)["Messages"]
    assert json.loads(message["Body"])["Message"] == "by test"


@pytest.mark.parametrize("protocol", ["json", "query", "smithy-rpc-v2-cbor"])
def test_metrics_are_everyones(gateway: GatewayProcess, protocol: str) -> None:
    other = gateway.client("cloudwatch", key=OTHER, protocol=protocol)
    other.put_metric_data(Namespace="ours", MetricData=[{"MetricName": protocol, "Value": 1.0}])
    found = gateway.client("cloudwatch").list_metrics(MetricName=protocol)["Metrics"]
    assert [metric["Namespace"] for metric in found] == ["ours"]


def test_session_of_other_account_works(gateway: GatewayProcess) -> None:
    assumed = gateway.client("sts").assume_role(RoleArn=f"arn:aws:iam::{OTHER}:role/r", RoleSessionName="session")
    credentials = assumed["Credentials"]
    key, token = credentials["AccessKeyId"], credentials["SessionToken"]
    assert gateway.client("sts", key=key, token=token).get_caller_identity()["Arn"].endswith(":assumed-role/r/session")
    s3 = gateway.client("s3", key=key, token=token, signature_version="s3v4")
    s3.create_bucket(Bucket="of-session")
    url = s3.generate_presigned_url("head_bucket", {"Bucket": "of-session"})
    assert httpx.head(url, trust_env=False).status_code == 200
    gateway.client("s3").head_bucket(Bucket="of-session")
    assert (
        gateway.client("sns", key=key, token=token).create_topic(Name="t")["TopicArn"]
        == f"arn:aws:sns:us-east-1:{ACCOUNT}:t"
    )


def test_user_is_known_by_its_key(gateway: GatewayProcess) -> None:
    iam = gateway.client("iam")
    iam.create_user(UserName="u")
    key = iam.create_access_key(UserName="u")["AccessKey"]["AccessKeyId"]
    assert gateway.client("sts", key=key).get_caller_identity()["Arn"] == f"arn:aws:iam::{ACCOUNT}:user/u"
    users: list[dict[str, Any]] = gateway.client("iam", key=OTHER).list_users()["Users"]
    assert [user["UserName"] for user in users] == ["u"]
