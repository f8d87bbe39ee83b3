"""Memory of the local endpoint with the largest payloads: a 1 GiB input, a 300 MiB output, and both at once.

The gateway streams them; the embedded backend (MiniStack) holds whole objects, and its memory is printed beside.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from boto3.s3.transfer import TransferConfig

from testing.endpoint.soak import NAME, Gateway, make_endpoint, make_places

MAX_GATEWAY_MB = 300.0
_MIB = 1 << 20
_INTERVAL_S = 0.02
_TIMEOUT_S = 900.0
_BLOCK = bytes(range(256)) * 4096

# Answers with the digest of its input, and as many MiB more as the custom attributes say.
_CONTAINER = """
import hashlib, http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()

    def do_POST(self):
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left:
            piece = self.rfile.read(min(left, 1 << 20))
            digest.update(piece)
            left -= len(piece)
        blocks = int(self.headers["X-Amzn-SageMaker-Custom-Attributes"])
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(64 + blocks * (1 << 20)))
        self.end_headers()
        self.wfile.write(digest.hexdigest().encode())
        for _ in range(blocks):
            self.wfile.write(bytes(range(256)) * 4096)

    def log_message(self, *arguments): pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
"""


class Peaks:
    """Highest memory, in MB, of processes by name, seen while the body of the `with` runs."""

    def __init__(self, processes: dict[str, psutil.Process]) -> None:
        self._processes = processes
        self.mb = dict.fromkeys(processes, 0.0)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Peaks]:
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,))
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(_INTERVAL_S):
            for name, process in self._processes.items():
                self.mb[name] = max(self.mb[name], process.memory_info().rss / 1e6)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input-mib", type=int, default=1024)
    parser.add_argument("--output-mib", type=int, default=300)


def run(options: argparse.Namespace) -> dict[str, Any]:
    big_in, big_out = options.input_mib, options.output_mib
    cases = {"input": (big_in, 0), "output": (1, big_out), "both": (big_in, big_out)}
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-", dir=Path.cwd()) as name:
        directory = Path(name)
        (directory / "container.py").write_text(_CONTAINER)
        gateway = Gateway(directory, f"{sys.executable} {directory / 'container.py'}")
        gateway.start()
        try:
            make_places(gateway)
            make_endpoint(gateway, {})
            digests = {mib: _upload(gateway, directory, mib) for mib in sorted({1, big_in})}
            results = {case: _measure(gateway, *sizes, digests[sizes[0]]) for case, sizes in cases.items()}
        finally:
            gateway.end()
    print("| payload | input MiB | output MiB | s | gateway peak MB | backend peak MB |")
    print("|---|---|---|---|---|---|")
    for case, result in results.items():
        print(
            f"| {case} | {result['input_mib']} | {result['output_mib']} | {result['seconds']} | {result['gateway_mb']}"
            f" | {result['backend_mb']} |"
        )
    print(f"promised: the gateway stays under {MAX_GATEWAY_MB:.0f} MB")
    return results


def _upload(gateway: Gateway, directory: Path, mib: int) -> str:
    """Upload an input of that size to S3, and return its digest."""
    path, digest = directory / "input", hashlib.sha256()
    with path.open("wb") as file:
        for number in range(mib):
            block = number.to_bytes(8, "big") + _BLOCK[8:]
            digest.update(block)
            file.write(block)
    gateway.client("s3").upload_file(str(path), NAME, f"input-{mib}", Config=TransferConfig(max_concurrency=2))
    path.unlink()
    return digest.hexdigest()


def _measure(gateway: Gateway, input_mib: int, output_mib: int, digest: str) -> dict[str, Any]:
    started = time.perf_counter()
    with Peaks(_processes(gateway)).watched() as peaks:
        answer = gateway.client("sagemaker-runtime").invoke_endpoint_async(
            EndpointName=NAME,
            InputLocation=f"s3://{NAME}/input-{input_mib}",
            CustomAttributes=str(output_mib),
            InvocationTimeoutSeconds=3600,
        )
        size = _wait_for(gateway, answer)
    seconds = time.perf_counter() - started
    assert size == 64 + output_mib * _MIB, f"the output has {size} bytes"
    bucket, _, key = answer["OutputLocation"].removeprefix("s3://").partition("/")
    head = gateway.client("s3").get_object(Bucket=bucket, Key=key, Range="bytes=0-63")["Body"].read().decode()
    assert head == digest, "the container received something else"
    return {
        "input_mib": input_mib,
        "output_mib": output_mib,
        "seconds": round(seconds, 1),
        **{f"{name}_mb": round(mb) for name, mb in peaks.mb.items()},
    }


def _wait_for(gateway: Gateway, answer: dict[str, Any]) -> int:
    """Wait for the output, and return its size."""
    s3 = gateway.client("s3")
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        for location in ("OutputLocation", "FailureLocation"):
            bucket, _, prefix = answer[location].removeprefix("s3://").partition("/")
            if found := s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents"):
                assert location == "OutputLocation", s3.get_object(Bucket=bucket, Key=prefix)["Body"].read()[:1000]
                size: int = found[0]["Size"]
                return size
        time.sleep(0.2)
    raise AssertionError(f"no answer:\n{gateway.log()}")


def _processes(gateway: Gateway) -> dict[str, psutil.Process]:
    backend = json.loads((gateway.data_dir / "backend" / "process.json").read_text())["pid"]
    [own] = [child for child in psutil.Process().children() if str(gateway.port) in child.cmdline()]
    return {"gateway": own, "backend": psutil.Process(backend)}
