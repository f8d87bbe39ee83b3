"""Requests to a local asynchronous endpoint whose gateway is killed again and again.

Clients send with boto3 while `python -m endpoint up` gets SIGKILL at times drawn from the seed, and is started again.
In the end each request that was accepted (202) has exactly one output or failure object and at least one notice. With
`--kill-backend` the embedded S3, SNS and SQS are killed, too: objects must still be right; queues and topics are lost
with their messages (they are made again), so notices are only counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import botocore.exceptions

from testing import ROOT
from testing.server import free_port
from testing.tiny_models import save_tiny_model

NAME = "soak"
TIMEOUT_S = 120.0
DONE_TIMEOUT_S = 900.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kills", type=int, default=5, help="of the gateway")
    parser.add_argument("--kill-backend", action="store_true", help="the backend, too, each second time")
    parser.add_argument("--serve", default=str(ROOT / "serve"), help="the container's command (default: ./serve)")


def run(options: argparse.Namespace, faults: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="longhaul-soak-") as name:
        directory = Path(name)
        save_tiny_model(directory / "model", ROOT / ".models/SmolLM2-135M-Instruct")
        return soak(
            directory,
            serve=options.serve,
            environment={"LONGHAUL_MODEL": str(directory / "model"), "LONGHAUL_MAX_MODEL_LEN": "512"},
            requests=options.requests,
            clients=options.clients,
            kills=options.kills,
            kill_backend=options.kill_backend,
            seed=options.seed,
            faults=faults,
        )


@dataclass(frozen=True)
class Accepted:
    inference_id: str
    output: str
    failure: str
    is_bad: bool


@dataclass
class Ledger:
    """The requests that were sent, written down by all clients."""

    accepted: list[Accepted] = field(default_factory=list)
    unanswered: int = 0
    """Number of calls that were cut off, and may have been accepted or not."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Gateway:
    """Owns the process of `python -m endpoint up`, one after another on the same data."""

    def __init__(self, directory: Path, serve: str) -> None:
        self.data_dir = directory / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = directory / "log"
        self._command = [sys.executable, "-m", "endpoint", "up", "--port", str(self.port), "--serve", serve]
        self._command += ["--data-dir", str(self.data_dir)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(self._command, env=environment, stdout=output, stderr=output)
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/_longhaul/health", timeout=5).close()
                return
            except OSError:
                assert self._process.poll() is None, f"the gateway ended:\n{self.log()}"
                assert time.monotonic() < deadline, f"the gateway does not answer:\n{self.log()}"
                time.sleep(0.05)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def kill_backend(self) -> None:
        running = json.loads((self.data_dir / "backend" / "process.json").read_text())
        os.kill(running["pid"], signal.SIGKILL)

    def end(self) -> int:
        """End the process with SIGTERM; return its exit status, or -1 if it had to be killed."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(90)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return -1

    def log(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])

    def client(self, service: str) -> Any:
        # One attempt: a second by the client itself would be a second request.
        config = botocore.config.Config(retries={"total_max_attempts": 1}, read_timeout=60)
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=config,
        )


def soak(
    directory: Path,
    *,
    serve: str,
    environment: dict[str, str],
    requests: int,
    clients: int,
    kills: int,
    kill_backend: bool,
    seed: int,
    faults: list[str],
) -> dict[str, Any]:
    """Run the soak and append to `faults` what is wrong. `environment` is the container's."""
    gateway, ledger = Gateway(directory, serve), Ledger()
    gateway.start()
    try:
        make_places(gateway)
        make_endpoint(gateway, environment)
        notices: Counter[str] = Counter()
        over = threading.Event()
        listener = threading.Thread(target=listen, args=(gateway, notices, over), daemon=True)
        listener.start()
        threads = [
            threading.Thread(target=send, args=(gateway, ledger, seed, number, requests // clients), daemon=True)
            for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        kill_on(gateway, ledger, random.Random(f"{seed} kills"), requests, kills, kill_backend)
        for thread in threads:
            thread.join()
        missing = wait_until_done(gateway, ledger)
        wait_for_notices(ledger, notices, bounded=not kill_backend)
        over.set()
        listener.join()
        check(gateway, ledger, notices, missing, faults, notices_may_be_lost=kill_backend)
    except Exception as error:
        faults.append(f"{type(error).__name__}: {error}\n{gateway.log()}")
        raise
    finally:
        status = gateway.end()
    if status != 0:
        faults.append(f"after SIGTERM the gateway ended with status {status}")
    return {"accepted": len(ledger.accepted), "unanswered": ledger.unanswered, "notices": notices.total()}


# Setting up


def make_places(gateway: Gateway) -> None:
    """Make bucket, topics and queue; again after the backend's death, which may leave the bucket."""
    s3, sns, sqs = (gateway.client(service) for service in ("s3", "sns", "sqs"))
    try:
        s3.create_bucket(Bucket=NAME)
    except botocore.exceptions.ClientError as error:
        if "BucketAlready" not in error.response["Error"]["Code"]:
            raise
    # Short, for messages that a kill cut off on their way to the listener.
    queue = sqs.create_queue(QueueName=NAME, Attributes={"VisibilityTimeout": "2"})["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    for topic in ("success", "error"):
        sns.subscribe(
            TopicArn=sns.create_topic(Name=topic)["TopicArn"],
            Protocol="sqs",
            Endpoint=arn,
            Attributes={"RawMessageDelivery": "true"},
        )


def make_endpoint(gateway: Gateway, environment: dict[str, str]) -> None:
    sagemaker = gateway.client("sagemaker")
    sagemaker.create_model(
        ModelName=NAME,
        PrimaryContainer={"Image": "longhaul", "Environment": environment},
        ExecutionRoleArn="arn:aws:iam::000000000000:role/soak",
    )
    topic = "arn:aws:sns:us-east-1:000000000000:"
    sagemaker.create_endpoint_config(
        EndpointConfigName=NAME,
        ProductionVariants=[
            {"VariantName": "v", "ModelName": NAME, "InstanceType": "ml.g5.xlarge", "InitialInstanceCount": 1}
        ],
        AsyncInferenceConfig={
            "OutputConfig": {
                "S3OutputPath": f"s3://{NAME}/output",
                "S3FailurePath": f"s3://{NAME}/failures",
                "NotificationConfig": {"SuccessTopic": f"{topic}success", "ErrorTopic": f"{topic}error"},
            },
            "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 16},
        },
    )
    sagemaker.create_endpoint(EndpointName=NAME, EndpointConfigName=NAME)
    sagemaker.get_waiter("endpoint_in_service").wait(
        EndpointName=NAME, WaiterConfig={"Delay": 1, "MaxAttempts": int(TIMEOUT_S)}
    )


# Under load


def send(gateway: Gateway, ledger: Ledger, seed: int, client: int, count: int) -> None:
    """Send each request until it is accepted with 202. Some are invalid, and fail in the container."""
    draw = random.Random(f"{seed} client {client}")
    s3, runtime = gateway.client("s3"), gateway.client("sagemaker-runtime")
    for number in range(count):
        is_bad = draw.random() < 0.1
        limit = "many" if is_bad else draw.randint(1, 8)
        body = json.dumps({"inputs": f"request {client} {number}", "parameters": {"max_new_tokens": limit}}).encode()
        inline = draw.random() < 0.5
        key = f"input/{client}/{number}"
        for attempt in range(10_000):
            inference_id = f"{client}-{number}-{attempt}"
            try:
                if not inline:
                    s3.put_object(Bucket=NAME, Key=key, Body=body)
                what = {"Body": body} if inline else {"InputLocation": f"s3://{NAME}/{key}"}
                answer = runtime.invoke_endpoint_async(
                    EndpointName=NAME, ContentType="application/json", InferenceId=inference_id, **what
                )
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                with ledger.lock:
                    ledger.unanswered += 1
                time.sleep(0.1)
                continue
            with ledger.lock:
                ledger.accepted.append(
                    Accepted(inference_id, answer["OutputLocation"], answer["FailureLocation"], is_bad)
                )
            break


def kill_on(
    gateway: Gateway, ledger: Ledger, draw: random.Random, requests: int, kills: int, kill_backend: bool
) -> None:
    """Kill the gateway, and maybe the backend, at random numbers of accepted requests."""
    at = sorted(draw.randrange(1, requests) for _ in range(kills))
    started = time.monotonic()
    for number, count in enumerate(at):
        while len(ledger.accepted) < count:
            show(f"{len(ledger.accepted)} of {requests} accepted, {number} kills, {time.monotonic() - started:.0f} s")
            time.sleep(0.02)
        gateway.kill()
        if kill_backend and number % 2 == 0:
            gateway.kill_backend()
        gateway.start()
        if kill_backend:
            make_places(gateway)
    while len(ledger.accepted) < requests // 8 * 8 and time.monotonic() - started < DONE_TIMEOUT_S:
        show(f"{len(ledger.accepted)} of {requests} accepted, {kills} kills, {time.monotonic() - started:.0f} s")
        time.sleep(0.2)


def listen(gateway: Gateway, notices: Counter[str], over: threading.Event) -> None:
    """Count the notifications of the queue by inference ID."""
    sqs = gateway.client("sqs")
    while not over.is_set():
        try:
            queue = sqs.get_queue_url(QueueName=NAME)["QueueUrl"]
            received = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=1)
            for message in received.get("Messages", []):
                notice = json.loads(message["Body"])
                if notice["eventName"] == "InferenceResult":
                    notices[notice["inferenceId"]] += 1
                sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            time.sleep(0.2)


# The result


def wait_until_done(gateway: Gateway, ledger: Ledger) -> int:
    """Wait for the objects of all requests; return the number of those that have none in the end."""
    deadline = time.monotonic() + DONE_TIMEOUT_S
    while True:
        objects = list_objects(gateway)
        missing = sum(not {key_of(each.output), key_of(each.failure)} & objects for each in ledger.accepted)
        show(f"{len(ledger.accepted)} accepted, {missing} still without an object")
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(1)


def wait_for_notices(ledger: Ledger, notices: Counter[str], bounded: bool) -> None:
    deadline = time.monotonic() + (TIMEOUT_S if bounded else 10.0)
    while any(not notices[each.inference_id] for each in ledger.accepted) and time.monotonic() < deadline:
        time.sleep(0.2)


def check(
    gateway: Gateway,
    ledger: Ledger,
    notices: Counter[str],
    missing: int,
    faults: list[str],
    *,
    notices_may_be_lost: bool,
) -> None:
    objects = list_objects(gateway)
    both = [each for each in ledger.accepted if {key_of(each.output), key_of(each.failure)} <= objects]
    wrong = [each for each in ledger.accepted if (key_of(each.failure) in objects) != each.is_bad]
    unheard = [each for each in ledger.accepted if not notices[each.inference_id]]
    twice = sum(count > 1 for count in notices.values())
    if missing:
        faults.append(f"{missing} accepted requests have no object")
    if both:
        faults.append(f"{len(both)} requests have an output and a failure: {both[0]}")
    if wrong:
        faults.append(f"{len(wrong)} requests came out otherwise than they should: {wrong[0]}")
    if unheard and not notices_may_be_lost:
        faults.append(f"{len(unheard)} requests have no notice: {unheard[0]}")
    print(
        f"\n{len(ledger.accepted)} accepted, {ledger.unanswered} calls cut and sent again; "
        f"{sum(key.startswith('output/') for key in objects)} outputs, "
        f"{sum(key.startswith('failures/') for key in objects)} failures (those of cut calls among them); "
        f"{len(unheard)} without a notice, {twice} with more than one"
    )


def list_objects(gateway: Gateway) -> set[str]:
    pages = gateway.client("s3").get_paginator("list_objects_v2").paginate(Bucket=NAME)
    return {entry["Key"] for page in pages for entry in page.get("Contents", [])}


def key_of(location: str) -> str:
    return location.removeprefix(f"s3://{NAME}/")


def show(text: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\x1b[2K{text}", end="", flush=True)
