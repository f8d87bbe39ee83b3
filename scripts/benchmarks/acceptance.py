"""Rate at which the local endpoint accepts: InvokeEndpointAsync's 202s beside SQLite's own single-row commits.

Both are on the disk before the caller is answered (WAL, synchronous=FULL), in the same directory, in turns. The
endpoint has no instances meanwhile, so that it does nothing but accept.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from tqdm import tqdm

from testing.endpoint.soak import NAME, Gateway, make_endpoint, make_places

HEALTHY = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *arguments): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
"""
HEADERS = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sagemaker/aws4_request, SignedHeaders=host,"
    " Signature=0",
    "X-Amzn-SageMaker-Content-Type": "application/json",
}
BODY = b'{"inputs": "The sea is", "parameters": {"max_new_tokens": 20}}'


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000, help="requests of a run")
    parser.add_argument("--connections", type=int, default=32)


def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-", dir=Path.cwd()) as name:
        directory = Path(name)
        (directory / "healthy.py").write_text(HEALTHY)
        gateway = Gateway(directory, f"python3 {directory / 'healthy.py'}")
        gateway.start()
        try:
            make_places(gateway)
            make_endpoint_without_instances(gateway)
            raw, accepted = [], []
            for _ in tqdm(range(options.runs), desc="rounds", disable=None):
                raw.append(measure_commits(directory / "raw.sqlite", options.requests))
                accepted.append(asyncio.run(measure_invocations(gateway.url, options.requests, options.connections)))
        finally:
            gateway.end()
    ratio = statistics.median(accepted) / statistics.median(raw)
    print(f"raw commits: median {statistics.median(raw):,.0f}/s, runs {[round(rate) for rate in raw]}")
    print(f"accepted:    median {statistics.median(accepted):,.0f}/s, runs {[round(rate) for rate in accepted]}")
    print(f"acceptance is {ratio:.2f} of raw single-row commits")
    return {"raw_per_s": raw, "accepted_per_s": accepted, "ratio": ratio}


def make_endpoint_without_instances(gateway: Gateway) -> None:
    make_endpoint(gateway, {})
    sagemaker = gateway.client("sagemaker")
    sagemaker.update_endpoint_weights_and_capacities(
        EndpointName=NAME, DesiredWeightsAndCapacities=[{"VariantName": "v", "DesiredInstanceCount": 0}]
    )
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=NAME, WaiterConfig={"Delay": 1, "MaxAttempts": 60})


def measure_commits(path: Path, count: int) -> float:
    """Measure commits per second, each of a row of the same size."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE jobs (seq INTEGER PRIMARY KEY, body BLOB, location TEXT)")
    started = time.perf_counter()
    for _ in range(count):
        connection.execute("INSERT INTO jobs (body, location) VALUES (?, ?)", (BODY, "s3://bucket/output/" + "x" * 40))
    seconds = time.perf_counter() - started
    connection.close()
    return count / seconds


async def measure_invocations(url: str, count: int, connections: int) -> float:
    """Measure 202s per second."""
    remaining = iter(range(count))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:

        async def send() -> None:
            for _ in remaining:
                async with session.post(
                    f"{url}/endpoints/{NAME}/async-invocations", data=BODY, headers=HEADERS
                ) as answer:
                    await answer.read()
                    assert answer.status == 202, await answer.text()

        started = time.perf_counter()
        await asyncio.gather(*(send() for _ in range(connections)))
        return count / (time.perf_counter() - started)
