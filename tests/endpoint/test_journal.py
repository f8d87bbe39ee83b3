"""A real container behind the local endpoint, killed in the middle of a batch: the job, sent again, continues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from endpoint.fleet.runners.environment import MARKER
from testing import ROOT
from testing.endpoint.endpoint_up import EndpointUp, Sent
from testing.server import TIMEOUT_S, eventually

BUCKET = "longhaul-checkpoints-us-east-1-000000000000"
LINES, TOKENS = 16, 250
BODY = "".join(
    json.dumps(
        {
            "inputs": f"{number} is",
            "parameters": {"max_new_tokens": TOKENS, "ignore_eos": True, "temperature": 0.8 * (number % 2), "seed": 7},
        }
    )
    + "\n"
    for number in range(LINES)
).encode()


@pytest.fixture
def up(tmp_path: Path, tiny_model_dir: Path) -> Iterator[EndpointUp]:
    """Start an endpoint process with `e`, an endpoint of one instance of ./serve."""
    up = EndpointUp(tmp_path, "--serve", str(ROOT / "serve"))
    environment = {
        "LONGHAUL_MODEL": str(tiny_model_dir),
        "LONGHAUL_THREADS": "1",
        "LONGHAUL_KV_CACHE_TOKENS": "16384",
        "LONGHAUL_MAX_BATCH_TOKENS": "128",
        "LONGHAUL_CHECKPOINT_INTERVAL_S": "0.1",
    }
    try:
        up.make_places()
        up.make_endpoint("e", container={"Image": "longhaul", "Environment": environment})
        yield up
    finally:
        up.close()


class Container:
    """The running instance."""

    def __init__(self, up: EndpointUp) -> None:
        [self.server] = [process for process in map(psutil.Process, up.processes()) if "container" in process.cmdline()]
        environ = self.server.environ()
        self._url = f"http://127.0.0.1:{environ['SAGEMAKER_BIND_TO_PORT']}"
        self._log = up.directory / "data" / "instances" / environ[MARKER] / "log"

    def generated(self) -> int:
        """Return the tokens generated so far."""
        lines = httpx.get(f"{self._url}/metrics", timeout=TIMEOUT_S, trust_env=False).text.splitlines()
        return next(
            int(float(line.split()[1])) for line in lines if line.startswith("longhaul_generation_tokens_total ")
        )

    def logged(self, action: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [line for line in lines if line.get("action") == action]


def submit(up: EndpointUp, job: str) -> Sent:
    return up.submit("e", body=BODY, ContentType="application/jsonlines", CustomAttributes=f"job={job}")


def texts(sent: Sent) -> list[str]:
    [output] = sent.ended().outputs()
    return [json.loads(line)[0]["generated_text"] for line in output["body"].splitlines()]


def journalled(up: EndpointUp) -> int:
    """Return the objects of all journals of the variant."""
    return int(up.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="e/main/jobs/")["KeyCount"])


def test_next_container_continues_batch_after_kill(up: EndpointUp) -> None:
    undisturbed = texts(submit(up, "undisturbed"))
    first = Container(up)
    before, objects = first.generated(), journalled(up)
    sent = submit(up, "novel")
    eventually(lambda: first.generated() > before + LINES * TOKENS // 3 and journalled(up) > objects + 2)
    first.server.kill()
    [failure] = sent.ended().failures()
    assert failure["body"].startswith(b"Amazon SageMaker could not get a response") and sent.outputs() == []
    assert "Received server error (0)" in sent.notice()["failureReason"]

    again = texts(submit(up, "novel"))
    assert sum(one != other for one, other in zip(again, undisturbed, strict=True)) <= 1, "but for one tie"
    second = Container(up)
    [resumed] = second.logged("job_resumed")
    [end] = eventually(lambda: second.logged("invocation_end"))
    assert end["job"] == "novel" and end["resumed_tokens"] == resumed["tokens"] > 0
    assert second.generated() == LINES * TOKENS - resumed["tokens"]
