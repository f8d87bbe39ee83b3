"""0→1→0 with `./serve`, by the recommended policies."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from testing import ROOT
from testing.endpoint.endpoint_up import EndpointUp
from testing.endpoint.scaling import Scaling
from testing.tiny_models import save_tiny_model

TIME_SCALE = "60"
REQUESTS = 3


def soak(options: argparse.Namespace, faults: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="longhaul-soak-") as name:
        directory = Path(name)
        up = real_endpoint(directory, "--time-scale", TIME_SCALE)
        try:
            return _play(up, real_container(directory), faults)
        finally:
            up.close()


def real_endpoint(directory: Path, *options: str) -> EndpointUp:
    """Start an endpoint process whose containers are `./serve`."""
    return EndpointUp(directory, "--serve", str(ROOT / "serve"), *options)


def real_container(directory: Path, **settings: str) -> dict[str, Any]:
    """Make a tiny model, and return the container that serves it."""
    save_tiny_model(directory / "model", ROOT / ".models/SmolLM2-135M-Instruct")
    environment = {
        "LONGHAUL_MODEL": str(directory / "model"),
        "LONGHAUL_DEVICE": "cpu",
        "LONGHAUL_THREADS": "1",
        "LONGHAUL_KV_CACHE_TOKENS": "32768",
    }
    return {"Image": "longhaul", "Environment": environment | settings}


def _play(up: EndpointUp, container: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    up.make_places()
    up.make_endpoint("e", container=container)
    scaling = Scaling(up, "e")
    scaling.put_recommended(max_capacity=4, concurrency=4)
    scaling.wait_for(0)
    started = time.monotonic()
    body = json.dumps({"inputs": "Once upon a time", "parameters": {"max_new_tokens": 20}}).encode()
    sent = [up.submit("e", body=body, ContentType="application/json") for _ in range(REQUESTS)]
    for each in sent:
        outputs = each.ended().outputs()
        if len(outputs) != 1 or not json.loads(outputs[0]["body"])[0]["generated_text"]:
            faults.append(f"real: {outputs or each.failures()}")
        if each.notice()["invocationStatus"] != "Completed":
            faults.append(f"real: {each.notice()}")
    answered_s = time.monotonic() - started
    scaling.wait_for(1)
    scaling.wait_for(0)
    print(f"sent at zero, answered after {answered_s:.1f} s\n{scaling.story()}", flush=True)
    set_to = [activity["Description"] for activity in scaling.activities() if activity["StatusCode"] == "Successful"]
    if set_to != [f"Setting desired instance count to {capacity}." for capacity in (0, 1, 0)]:
        faults.append(f"real: the activities are\n{scaling.story()}")
    return {"answered_s": answered_s, "activities": set_to}
