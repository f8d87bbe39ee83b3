"""How many asynchronous invocations a second the local endpoint accepts, beside what the disk allows.

gateway     InvokeEndpointAsync over HTTP, each acknowledged when it is on the disk (202), by clients at once
sqlite      single rows of the same table, each with a commit of its own (WAL, synchronous=FULL), nothing else

The two take turns in the same directory. The endpoint has one instance that never answers, so that the requests stay
in the queue.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import boto3
import botocore.config  # type: ignore[import-untyped]

from endpoint import queue

from .serving import ROOT

GOAL = 0.3
ROUNDS = 3
NAME = "acceptance"
LOCATION = "s3://acceptance/inputs/documents-2026-01-01.jsonl"
_PATIENCE_S = 120.0

_SILENT_CONTAINER = """
import http.server, os, threading

class Requests(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        threading.Event().wait()

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Requests).serve_forever()
"""


class Gateway:
    """`python -m endpoint up` on a directory of its own, or one that is up elsewhere. `close` ends what it started."""

    def __init__(self, directory: Path, port: int) -> None:
        container = directory / "container.py"
        container.write_text(_SILENT_CONTAINER)
        self.database = directory / "data" / "endpoint.sqlite"
        self.port = port
        self._log = directory / "log"
        command = [sys.executable, "-m", "endpoint", "up", "--port", str(port), "--data-dir", str(directory / "data")]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--serve", f"{sys.executable} {container}"],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )

    def ready(self) -> Gateway:
        """With an endpoint in service."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the gateway is not there:\n{self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        make_endpoint(f"http://127.0.0.1:{self.port}")
        return self

    def accepted(self) -> int:
        connection = sqlite3.connect(self.database)
        count: int = connection.execute("SELECT count(*) FROM jobs").fetchone()[0]
        connection.close()
        return count

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(90)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_longhaul/health", timeout=5).close()
        except OSError:
            return False
        return True


def make_endpoint(url: str) -> None:
    sagemaker = boto3.client(
        "sagemaker",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=botocore.config.Config(proxies={}),
    )
    image = {"Image": "000000000000.dkr.ecr.us-east-1.amazonaws.com/longhaul:latest"}
    role = "arn:aws:iam::000000000000:role/sagemaker"
    sagemaker.create_model(ModelName=NAME, PrimaryContainer=image, ExecutionRoleArn=role)
    variant = {"VariantName": "main", "ModelName": NAME, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    places = {"S3OutputPath": "s3://acceptance/outputs", "S3FailurePath": "s3://acceptance/failures"}
    sagemaker.create_endpoint_config(
        EndpointConfigName=NAME, ProductionVariants=[variant], AsyncInferenceConfig={"OutputConfig": places}
    )
    sagemaker.create_endpoint(EndpointName=NAME, EndpointConfigName=NAME)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=NAME, WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    sagemaker.close()


# The two rates


async def gateway_rate(port: int, clients: int, seconds: float) -> tuple[float, int]:
    """Accepted requests a second, and how many."""
    until = time.perf_counter() + seconds
    started = time.perf_counter()
    accepted = sum(await asyncio.gather(*(_client(port, until) for _ in range(clients))))
    return accepted / (time.perf_counter() - started), accepted


async def _client(port: int, until: float) -> int:
    """One request after the other on one connection, as bytes: its own cost is small beside the gateway's."""
    credential = "Credential=000000000000/20260101/us-east-1/sagemaker/aws4_request"
    request = (
        f"POST /endpoints/{NAME}/async-invocations HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n"
        f"Authorization: AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0\r\n"
        f"X-Amzn-SageMaker-InputLocation: {LOCATION}\r\nX-Amzn-SageMaker-Content-Type: application/jsonlines\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    accepted = 0
    while time.perf_counter() < until:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        assert head.startswith(b"http/1.1 202"), head
        accepted += 1
    writer.close()
    return accepted


def sqlite_rate(path: Path, seconds: float) -> float:
    """Rows a second, of the queue's own table, each committed alone."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.executescript(queue.SCHEMA)
    rows = 0
    started = time.perf_counter()
    while time.perf_counter() < started + seconds:
        name, now = str(uuid.uuid4()), time.time()
        connection.execute(
            "INSERT INTO jobs (id, endpoint, variant, inference_id, input_location, content_type, timeout_s,"
            " accepted_at, expires_at, output_location, failure_location) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (name, NAME, "main", str(uuid.uuid4()), LOCATION, "application/jsonlines", 900, now, now + 21600)
            + (f"s3://acceptance/outputs/{name}.out", f"s3://acceptance/failures/{name}-error.out"),
        )
        rows += 1
    took = time.perf_counter() - started
    connection.close()
    return rows / took


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=32, help="connections that send at once (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each of three turns (%(default)s)")
    parser.add_argument("--port", type=int, default=4571, help="of the gateway that is started (%(default)s)")
    parser.add_argument("--directory", type=Path, default=ROOT, help="the disk to measure, tmpfs being none (%(default)s)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix=".acceptance-", dir=options.directory) as name:
        gateway = Gateway(Path(name), options.port)
        try:
            gateway.ready()
            results = _turns(gateway, Path(name) / "alone.sqlite", options)
        finally:
            gateway.close()
    print("| accepted by the gateway, a second | rows alone, a second | ratio |")
    print("|---|---|---|")
    for through, alone in zip(results["gateway"], results["sqlite"], strict=True):
        print(f"| {through:.0f} | {alone:.0f} | {through / alone:.2f} |")
    print(f"median ratio {results['ratio']:.2f}; promised: at least {GOAL}")
    return results


def _turns(gateway: Gateway, alone: Path, options: argparse.Namespace) -> dict[str, Any]:
    asyncio.run(gateway_rate(gateway.port, options.clients, 1.0))  # what is compiled with first use
    through, rows = [], []
    before, sent = gateway.accepted(), 0
    for _ in range(ROUNDS):
        rows.append(sqlite_rate(alone, options.seconds))
        rate, accepted = asyncio.run(gateway_rate(gateway.port, options.clients, options.seconds))
        through.append(rate)
        sent += accepted
    found = gateway.accepted() - before
    assert found == sent, f"{sent} were acknowledged and {found} are in the database"
    ratio = statistics.median(one / other for one, other in zip(through, rows, strict=True))
    return {"gateway": through, "sqlite": rows, "ratio": ratio, "clients": options.clients}
