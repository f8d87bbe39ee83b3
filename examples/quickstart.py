"""The asynchronous workflow of SageMaker on this machine: the endpoint of `python -m endpoint`, and unmodified boto3.

The code is as for AWS, except for what `local_platform` does: it starts the endpoint, and says where it is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import textwrap
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

import boto3

from examples.local_platform import (
    DATA_DIR,
    ROOT,
    TIME_SCALE,
    aws_environment,
    down_command,
    free_port,
    platform,
)
from examples.scaling_policies import put_scaling_policies
from examples.terminal import Failed, StatusLine, exchange, heading

MODEL = ROOT / ".models/SmolLM2-135M-Instruct"
DOCUMENTS = ROOT / "examples" / "documents.jsonl"

NAME = "smollm2"
VARIANT = "AllTraffic"
BUCKET = "quickstart"
ROLE = "arn:aws:iam::000000000000:role/quickstart"

CONCURRENCY = 8

ENDPOINT_TIMEOUT_S = 300
RESULTS_TIMEOUT_S = 900
SHOWN_OF_EACH_TASK = 2


# ---- the steps, as on AWS ------------------------------------------------------------------------------------------


def make_bucket_topics_and_queue() -> str:
    """Make a bucket, topics for good and bad news, and a queue subscribed to both. Returns the queue's URL."""
    heading("A bucket, two topics, a queue")
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    sns, sqs = boto3.client("sns"), boto3.client("sqs")
    queue = sqs.create_queue(QueueName="notifications")["QueueUrl"]
    queue_arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    for topic in ("success", "error"):
        arn = sns.create_topic(Name=topic)["TopicArn"]
        sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=queue_arn, Attributes={"RawMessageDelivery": "true"})
        print(f"{arn} → {queue_arn}")
    return str(queue)


def make_endpoint() -> None:
    heading("A model, an endpoint config, an endpoint")
    sagemaker = boto3.client("sagemaker")
    account = boto3.client("sts").get_caller_identity()["Account"]
    # AWS needs the image in ECR, and the model in S3 (ModelDataSource). Here ./serve of this checkout is started, which
    # reads the model's directory.
    container = {
        "Image": f"{account}.dkr.ecr.us-east-1.amazonaws.com/longhaul:0.1.0",
        # A model so small needs no GPU, whatever driver this machine has.
        "Environment": {"LONGHAUL_MODEL": str(MODEL), "LONGHAUL_DEVICE": "cpu"},
    }
    sagemaker.create_model(ModelName=NAME, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {
        "VariantName": VARIANT,
        "ModelName": NAME,
        "InstanceType": "ml.g5.xlarge",
        "InitialInstanceCount": 1,
    }
    topics = {f"{name}Topic": f"arn:aws:sns:us-east-1:{account}:{name.lower()}" for name in ("Success", "Error")}
    sagemaker.create_endpoint_config(
        EndpointConfigName=NAME,
        ProductionVariants=[variant],
        AsyncInferenceConfig={
            "OutputConfig": {
                "S3OutputPath": f"s3://{BUCKET}/output",
                "S3FailurePath": f"s3://{BUCKET}/failures",
                "NotificationConfig": topics,
            },
            "ClientConfig": {"MaxConcurrentInvocationsPerInstance": CONCURRENCY},
        },
    )
    sagemaker.create_endpoint(EndpointName=NAME, EndpointConfigName=NAME)
    wait_until_in_service(sagemaker)


def wait_until_in_service(sagemaker: Any) -> None:
    line, started = StatusLine(), time.monotonic()
    while (status := (endpoint := sagemaker.describe_endpoint(EndpointName=NAME))["EndpointStatus"]) == "Creating":
        waited = time.monotonic() - started
        if waited > ENDPOINT_TIMEOUT_S:
            raise Failed(f"the endpoint is still {status} after {ENDPOINT_TIMEOUT_S} s")
        line.show(f"{NAME}: {status} ({waited:.0f} s)")
        time.sleep(0.3)
    if status != "InService":
        raise Failed(f"the endpoint is {status}: {endpoint.get('FailureReason')}")
    line.end(f"{endpoint['EndpointArn']} is {status} after {time.monotonic() - started:.1f} s")


@dataclass(frozen=True)
class Request:
    title: str
    key: str
    content_type: str
    body: bytes
    attributes: str = ""

    def show(self, answer: bytes) -> None:
        if self.content_type == "text/plain":
            exchange(self.body.decode(), answer.decode())
        elif self.key.endswith(".jsonl"):
            show_batch(answer)
        else:
            show_document(json.loads(self.body), json.loads(answer))


REQUESTS = (
    Request(
        "OpenAI chat",
        "chat.json",
        "application/json",
        json.dumps(
            {
                "messages": [{"role": "user", "content": "Give me three tips for a good night's sleep."}],
                "max_tokens": 80,
                "temperature": 0,
            }
        ).encode(),
    ),
    Request(
        "Hugging Face: a list of prompts",
        "list.json",
        "application/json",
        json.dumps(
            {
                "inputs": ["The best thing about reading books is", "If I could fly, I would"],
                "parameters": {"max_new_tokens": 40, "temperature": 0.7, "top_p": 0.9, "seed": 1},
            }
        ).encode(),
    ),
    Request(
        "Plain text",
        "text.txt",
        "text/plain",
        b"The old lighthouse keeper looked out over the sea and saw",
        "max_new_tokens=60",
    ),
    Request(
        "Batch: old texts as OpenAI Batch lines", "documents.jsonl", "application/jsonlines", DOCUMENTS.read_bytes()
    ),
    Request(
        "A request with a mistake",
        "mistake.json",
        "application/json",
        b'{"inputs": "Hello", "parameters": {"top_q": 1}}',
    ),
)


def invoke_all() -> dict[str, Request]:
    """Upload and invoke all requests. Returns them by inference id."""
    heading("Documents uploaded, invocations accepted")
    s3, runtime = boto3.client("s3"), boto3.client("sagemaker-runtime")
    accepted = {}
    for request in REQUESTS:
        s3.put_object(Bucket=BUCKET, Key=f"input/{request.key}", Body=request.body)
        answer = runtime.invoke_endpoint_async(
            EndpointName=NAME,
            InputLocation=f"s3://{BUCKET}/input/{request.key}",
            ContentType=request.content_type,
            InvocationTimeoutSeconds=600,
            **({"CustomAttributes": request.attributes} if request.attributes else {}),
        )
        status = answer["ResponseMetadata"]["HTTPStatusCode"]
        print(f"{status} s3://{BUCKET}/input/{request.key} → {answer['OutputLocation']}")
        accepted[answer["InferenceId"]] = request
    return accepted


def gather_notifications(queue: str, accepted: dict[str, Request]) -> dict[str, dict[str, Any]]:
    """Read the notifications from the queue as they come, until each request has one."""
    heading("Waiting for notifications")
    sqs, notifications = boto3.client("sqs"), dict[str, dict[str, Any]]()
    line, started = StatusLine(), time.monotonic()
    while len(notifications) < len(accepted):
        waited = time.monotonic() - started
        if waited > RESULTS_TIMEOUT_S:
            raise Failed(f"{len(notifications)} of {len(accepted)} notifications after {RESULTS_TIMEOUT_S} s")
        bar = "█" * round(20 * len(notifications) / len(accepted))
        line.show(f"{bar:░<20} {len(notifications)} of {len(accepted)} done, {waited:.0f} s")
        received = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=1)
        for message in received.get("Messages", []):
            notification = json.loads(message["Body"])
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            if notification["eventName"] == "InferenceResult":  # the endpoint also sends a test to each topic
                notifications[notification["inferenceId"]] = notification
                took = time.monotonic() - started
                key = accepted[notification["inferenceId"]].key
                line.end(f"{notification['invocationStatus']:<9} {key} after {took:.1f} s")
    return notifications


def show_results(accepted: dict[str, Request], notifications: dict[str, dict[str, Any]]) -> None:
    s3 = boto3.client("s3")
    for inference_id, request in accepted.items():
        heading(request.title)
        notification = notifications[inference_id]
        is_mistake = request.key == "mistake.json"
        if (notification["invocationStatus"] == "Failed") != is_mistake:
            raise Failed(f"{request.key}: {notification['invocationStatus']}: {notification.get('failureReason')}")
        if is_mistake:
            print(f"notification: {notification['failureReason']}")
            (failure,) = s3.list_objects_v2(Bucket=BUCKET, Prefix="failures/")["Contents"]
            print(f"s3://{BUCKET}/{failure['Key']}:")
            print(textwrap.indent(s3.get_object(Bucket=BUCKET, Key=failure["Key"])["Body"].read().decode(), "    "))
            continue
        bucket, _, key = notification["responseParameters"]["outputLocation"].removeprefix("s3://").partition("/")
        request.show(s3.get_object(Bucket=bucket, Key=key)["Body"].read())


def show_document(asked: dict[str, Any], answered: Any) -> None:
    if "messages" in asked:
        exchange(asked["messages"][-1]["content"], answered["choices"][0]["message"]["content"])
        return
    for prompt, answer in zip(asked["inputs"], answered, strict=True):
        exchange(prompt, answer["generated_text"])


def show_batch(answer: bytes) -> None:
    items = [json.loads(line) for line in DOCUMENTS.read_text().splitlines()]
    results = [json.loads(line) for line in answer.splitlines()]
    if len(results) != len(items):
        raise Failed(f"{len(results)} results for {len(items)} lines")
    errors = [result for result in results if result["error"] or result["response"]["status_code"] != 200]
    if errors:
        raise Failed(f"{len(errors)} lines failed, the first with {json.dumps(errors[0])[:500]}")
    show_samples(items, results)
    usages = [result["response"]["body"]["usage"] for result in results]
    read, written = (sum(usage[f"{kind}_tokens"] for usage in usages) for kind in ("prompt", "completion"))
    print(f"\n{len(items)} texts: {read} tokens read, {written} written")
    show_accuracy(items, results)


def text_of(result: dict[str, Any]) -> str:
    text: str = result["response"]["body"]["choices"][0]["message"]["content"]
    return text


def show_samples(items: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
    shown: dict[str, int] = {}
    for item, result in zip(items, results, strict=True):
        if item["custom_id"] != result["custom_id"]:
            raise Failed(f"the result of {item['custom_id']} came back as {result['custom_id']}")
        task = item["custom_id"].partition("-")[0]
        shown[task] = shown.get(task, 0) + 1
        if shown[task] <= SHOWN_OF_EACH_TASK:
            print(f"\n[{item['custom_id']}] {item['body']['metadata']['source']}")
            exchange(textwrap.shorten(item["body"]["messages"][-1]["content"], 300, placeholder=" …"), text_of(result))


def show_accuracy(items: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
    labelled = [
        (item["body"]["metadata"]["label"], text_of(result).strip().lower())
        for item, result in zip(items, results, strict=True)
        if "label" in item["body"]["metadata"]
    ]
    right = sum(answer.startswith(label) for label, answer in labelled)
    print(f"Positive or negative: {right} of {len(labelled)} right ({right / len(labelled):.0%})")


# ---- to zero and back ----------------------------------------------------------------------------------------------


def scale_to_zero_and_back(queue: str) -> None:
    """Let the endpoint go to zero by the recommended policies, and wake it by a request."""
    heading(f"To zero instances and back: a minute of the platform takes {60 / TIME_SCALE:g} s here")
    put_scaling_policies(NAME, VARIANT, max_capacity=1, concurrency=CONCURRENCY)
    wait_for_instances(0)
    print("At zero nothing is paid for. A request waits in the queue and wakes it:")
    key, prompt = "wake.txt", b"The best way to begin the morning is"
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"input/{key}", Body=prompt)
    answer = boto3.client("sagemaker-runtime").invoke_endpoint_async(
        EndpointName=NAME,
        InputLocation=f"s3://{BUCKET}/input/{key}",
        ContentType="text/plain",
        CustomAttributes="max_new_tokens=40",
    )
    request = Request("Answered after waking", key, "text/plain", prompt)
    accepted = {answer["InferenceId"]: request}
    wait_for_instances(1)
    show_results(accepted, gather_notifications(queue, accepted))
    show_scaling_activities()


def wait_for_instances(count: int) -> None:
    sagemaker, line, started = boto3.client("sagemaker"), StatusLine(), time.monotonic()
    while True:
        endpoint = sagemaker.describe_endpoint(EndpointName=NAME)
        (variant,) = endpoint["ProductionVariants"]
        current, waited = variant["CurrentInstanceCount"], time.monotonic() - started
        if current == count and endpoint["EndpointStatus"] == "InService":
            line.end(f"{NAME} has {count} instances after {waited:.0f} s")
            return
        if waited > ENDPOINT_TIMEOUT_S:
            raise Failed(f"the endpoint still has {current} instances after {ENDPOINT_TIMEOUT_S} s")
        line.show(f"{NAME}: {endpoint['EndpointStatus']}, instances: {current} ({waited:.0f} s)")
        time.sleep(0.3)


def show_scaling_activities() -> None:
    heading("Why it scaled, by DescribeScalingActivities")
    activities = boto3.client("application-autoscaling").describe_scaling_activities(
        ServiceNamespace="sagemaker", ResourceId=f"endpoint/{NAME}/variant/{VARIANT}"
    )["ScalingActivities"]
    for activity in reversed(activities):
        print(f"{activity['StartTime']:%H:%M:%S} {activity['Description']}\n    {activity['Cause']}")


# ---- everything ----------------------------------------------------------------------------------------------------


def run(port: int, keep: bool) -> None:
    environment = aws_environment(f"http://127.0.0.1:{port}")
    os.environ.update(environment)
    heading("SageMaker's API on this machine")
    with platform(port, keep):
        queue = make_bucket_topics_and_queue()
        make_endpoint()
        accepted = invoke_all()
        show_results(accepted, gather_notifications(queue, accepted))
        scale_to_zero_and_back(queue)
        if keep:
            show_what_next(environment)
        else:
            boto3.client("sagemaker").delete_endpoint(EndpointName=NAME)
    if not keep:
        print("\nEverything is stopped. scripts/quickstart --keep leaves it running and says what to try.")


def show_what_next(environment: dict[str, str]) -> None:
    heading("It is still running. Try")
    exports = " ".join(f"{name}={value}" for name, value in environment.items())
    print(f"export {exports}")
    print(f"aws s3 ls s3://{BUCKET}/output/")
    print(f"aws sagemaker describe-endpoint --endpoint-name {NAME}")
    print(f"aws s3 cp my-prompts.jsonl s3://{BUCKET}/input/")
    print(
        f"aws sagemaker-runtime invoke-endpoint-async --endpoint-name {NAME} --content-type application/jsonlines \\\n"
        f"    --input-location s3://{BUCKET}/input/my-prompts.jsonl"
    )
    print(f"aws logs tail /aws/sagemaker/Endpoints/{NAME} --follow")
    print(f"\nIt goes to zero after ten idle minutes, which take {600 / TIME_SCALE:g} s here, and wakes by a request.")
    print("End it with:")
    print(down_command(DATA_DIR))


def end_by_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave it running, and say what to try next")
    parser.add_argument(
        "--port", type=int, help="port of AWS's API on 127.0.0.1 (default: a free one; 4566 with --keep)"
    )
    options = parser.parse_args()
    # Signals become exceptions, so that the endpoint is stopped, too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end_by_signal)
    try:
        run(options.port or (4566 if options.keep else free_port()), options.keep)
    except Failed as failure:
        print(f"\nquickstart failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nquickstart interrupted; everything is stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
