"""`python -m endpoint up` in a process of its own, used with unmodified boto3 and killed where a test wants it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import psutil
from botocore.config import Config
from botocore.exceptions import ClientError

from testing import ROOT
from testing.server import TIMEOUT_S, eventually, free_port

ROLE = "arn:aws:iam::000000000000:role/longhaul"
BUCKET = "bucket"


def run_endpoint(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m endpoint` until it ends."""
    return subprocess.run(
        [sys.executable, "-m", "endpoint", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=TIMEOUT_S,
        capture_output=True,
        text=True,
    )


class EndpointUp:
    """Must be closed, and leaves no process behind then."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.directory = directory
        self.says = directory / "container-says"
        self.says.touch()
        self._log = directory / "log"
        self._data = ["--data-dir", str(directory / "data")]
        self._serve = f"{sys.executable} {Path(__file__).parent / 'scripted_container.py'}"
        serve = [] if "--runner" in options else ["--serve", self._serve]
        self._options = ["--port", str(self.port), "--time-scale", "60", *serve, *options]
        self._clients: dict[str, Any] = {}
        self._making = threading.Lock()
        self.notices: list[dict[str, Any]] = []
        self.start()

    # Its process

    def start(self) -> None:
        self.launch()
        eventually(self._answers)

    def launch(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "endpoint", "up", *self._data, *self._options],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)

    def processes(self) -> dict[int, str]:
        """Return the names of all living processes that know its directory: gateway, backend, instances."""
        return {pid: name for pid, (name, _) in self._living().items()}

    def commands(self) -> list[str]:
        """Return the command lines of the same processes."""
        return [command for _, command in self._living().values()]

    def _living(self) -> dict[int, tuple[str, str]]:
        """Return names and command lines by pid."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if process.status() != psutil.STATUS_ZOMBIE and str(self.directory) in " ".join(
                    [*command, *process.environ().values()]
                ):
                    found[process.pid] = process.name(), " ".join(command)
        return found

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
        if self.processes():
            self.down()

    def down(self) -> subprocess.CompletedProcess[str]:
        return run_endpoint("down", *self._data)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()[-3000:]
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{self.url}/_longhaul/health", timeout=5).close()
            return True
        return False

    # AWS

    def client(self, service: str) -> Any:
        with self._making:
            if service not in self._clients:
                session = boto3.session.Session(
                    aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
                )
                config = Config(retries={"total_max_attempts": 1}, proxies={}, s3={"addressing_style": "path"})
                self._clients[service] = session.client(service, endpoint_url=self.url, config=config)
            return self._clients[service]

    def make_places(self) -> None:
        """Make a bucket, two topics, and a queue that is subscribed to both."""
        self.client("s3").create_bucket(Bucket=BUCKET)
        sqs, sns = self.client("sqs"), self.client("sns")
        self._queue: str = sqs.create_queue(QueueName="notices")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=self._queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        for name in ("good", "bad"):
            topic = sns.create_topic(Name=name)["TopicArn"]
            sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"})

    def make_endpoint(
        self, name: str, instances: int = 1, container: dict[str, Any] | None = None, **output: Any
    ) -> None:
        """Make an endpoint and wait until it is in service; by default with the container that does as requests say.

        `output` changes its OutputConfig.
        """
        sagemaker = self.client("sagemaker")
        told = {"Image": "told:1", "Environment": {"CONTAINER_SAYS": str(self.says)}}
        sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=container or told)
        topics = {kind: f"arn:aws:sns:us-east-1:000000000000:{name}" for kind, name in _TOPICS.items()}
        paths = {"S3OutputPath": f"s3://{BUCKET}/out", "S3FailurePath": f"s3://{BUCKET}/failed"}
        variant = {
            "VariantName": "main",
            "ModelName": name,
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": 1,
        }
        config = {"NotificationConfig": topics} | paths | output
        sagemaker.create_endpoint_config(
            EndpointConfigName=name,
            ProductionVariants=[variant],
            AsyncInferenceConfig={
                "OutputConfig": {key: value for key, value in config.items() if value is not None},
                "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 4},
            },
        )
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        self.wait_until_in_service(name)
        if instances != 1:
            desired = [{"VariantName": "main", "DesiredInstanceCount": instances}]
            sagemaker.update_endpoint_weights_and_capacities(EndpointName=name, DesiredWeightsAndCapacities=desired)
            self.wait_until_in_service(name)

    def submit(self, endpoint: str, do: str = "echo", body: bytes | None = b"input", **parameters: Any) -> Sent:
        """Send a request; `body` is put into S3, unless the parameters say where the input is."""
        if "InputLocation" not in parameters and "Body" not in parameters:
            key = f"in/{uuid.uuid4()}"
            self.client("s3").put_object(Bucket=BUCKET, Key=key, Body=body, ContentType="text/csv")
            parameters["InputLocation"] = f"s3://{BUCKET}/{key}"
        given = {"CustomAttributes": f"do={do}"} | parameters
        answer = self.client("sagemaker-runtime").invoke_endpoint_async(EndpointName=endpoint, **given)
        return Sent(self, answer)

    def hear(self) -> list[dict[str, Any]]:
        """Return all notifications so far."""
        sqs = self.client("sqs")
        while messages := sqs.receive_message(QueueUrl=self._queue, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                self.notices.append(json.loads(message["Body"]))
                sqs.delete_message(QueueUrl=self._queue, ReceiptHandle=message["ReceiptHandle"])
        return self.notices

    def metric(self, endpoint: str, name: str, statistic: str = "Sum", **dimensions: str) -> float | None:
        now = datetime.now(UTC)
        dimensions = {"EndpointName": endpoint} | dimensions
        points = self.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/SageMaker",
            MetricName=name,
            Dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()],
            StartTime=now - timedelta(hours=1),
            EndTime=now + timedelta(hours=1),
            Period=7200,
            Statistics=[statistic],
        )["Datapoints"]
        return sum(point[statistic] for point in points) if points else None

    def data_log(self, endpoint: str) -> list[str]:
        """Return the lines of all its data-logs."""
        logs, group = self.client("logs"), f"/aws/sagemaker/Endpoints/{endpoint}"
        try:
            streams = logs.describe_log_streams(logGroupName=group)["logStreams"]
        except ClientError:
            return []
        return [
            event["message"]
            for stream in streams
            if stream["logStreamName"].endswith("/data-log")
            for event in logs.get_log_events(
                logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True
            )["events"]
        ]

    def wait_until_in_service(self, name: str) -> None:
        waiter = self.client("sagemaker").get_waiter("endpoint_in_service")
        waiter.wait(EndpointName=name, WaiterConfig={"Delay": 0.05, "MaxAttempts": 1200})


_TOPICS = {"SuccessTopic": "good", "ErrorTopic": "bad"}


class Sent:
    """A request that was accepted."""

    def __init__(self, up: EndpointUp, answer: dict[str, Any]) -> None:
        self._up = up
        self.inference_id: str = answer["InferenceId"]
        self.output: str = answer["OutputLocation"]
        self.failure: str | None = answer.get("FailureLocation")

    def outputs(self) -> list[dict[str, Any]]:
        """Return the output object, if it is there."""
        return list(self._objects(self.output))

    def failures(self) -> list[dict[str, Any]]:
        return list(self._objects(self.failure))

    def ended(self) -> Sent:
        """Wait until there is an output or failure object."""
        eventually(lambda: self.outputs() or self.failures())
        return self

    def notices(self) -> list[dict[str, Any]]:
        return [notice for notice in self._up.hear() if notice.get("inferenceId") == self.inference_id]

    def notice(self) -> dict[str, Any]:
        """Wait for its notification and return it."""
        found = eventually(self.notices)
        return found[0]

    def _objects(self, location: str | None) -> Iterator[dict[str, Any]]:
        if location is None:
            return
        bucket, _, key = location.removeprefix("s3://").partition("/")
        with contextlib.suppress(ClientError):
            found = self._up.client("s3").get_object(Bucket=bucket, Key=key)
            yield {"body": found["Body"].read(), "type": found["ContentType"]}
