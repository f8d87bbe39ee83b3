"""A scale-in to one instance while three generate: what the two others have generated is taken from the journal."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import psutil

from testing.endpoint.endpoint_up import EndpointUp, Sent
from testing.endpoint.scaling import Scaling
from testing.server import TIMEOUT_S, eventually

from .scaling_real import real_container, real_endpoint

TIME_SCALE = "240"
INSTANCES = 3
TEXT_S = 45.0
"""Seconds for which an instance shall generate: longer than it goes on after SIGTERM."""
MAX_TOKENS = 8000
RATE_TOKENS = 1000
"""Tokens of each instance by which their speed is measured."""
DONE_TIMEOUT_S = 1200.0
_GENERATED = "longhaul_generation_tokens_total"


def soak(options: argparse.Namespace, faults: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="longhaul-soak-") as name:
        directory = Path(name)
        up = real_endpoint(directory, "--time-scale", TIME_SCALE, "--on-no-answer", "redeliver")
        try:
            return _play(up, real_container(directory, LONGHAUL_KV_CACHE_TOKENS="65536"), options.seed, faults)
        finally:
            up.close()


def _play(up: EndpointUp, container: dict[str, Any], seed: int, faults: list[str]) -> dict[str, Any]:
    up.make_places()
    up.make_endpoint("e", instances=INSTANCES, container=container)
    tokens = _measure_tokens(up, seed)
    undisturbed = [text(sent) for sent in _send(up, "undisturbed", seed, tokens)]
    scaling = Scaling(up, "e")
    before = _generated(up)
    sent = _send(up, "scaled", seed, tokens)
    eventually(lambda: all(_generated(up)[port] > before[port] for port in before))
    scaling.put_recommended(max_capacity=INSTANCES, concurrency=4)
    scaling.wait_for(1, DONE_TIMEOUT_S)
    if any(each.outputs() for each in sent):
        faults.append("resume: a request was over before the scale-in")
    [(port, _)] = eventually(lambda: len(found := _generated(up)) == 1 and list(found.items()))  # type: ignore[misc]
    for number, (each, due) in enumerate(zip(sent, undisturbed, strict=True)):
        if (got := text(each)) != due:
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(got, due, strict=False)))
            faults.append(f"resume: answer {number} is another from character {same} of {len(due)} on")
        if each.notice()["invocationStatus"] != "Completed":
            faults.append(f"resume: {each.notice()}")
    generated = _generated(up)[port] - before[port]
    resumed = [line["tokens"] for line in _logged(up, "job_resumed")]
    total = INSTANCES * tokens
    [scale_in] = [each for each in scaling.activities() if each["Description"].endswith("count to 1.")]
    print(scaling.story())
    print(f"{total} tokens: {generated} generated in the last instance, {resumed} resumed", flush=True)
    if len(resumed) != INSTANCES - 1 or not all(resumed) or generated + sum(resumed) != total:
        faults.append(f"resume: {generated} tokens generated in the last instance and {resumed} resumed, not {total}")
    if "2" not in scale_in.get("Details", ""):
        faults.append(f"resume: the activity doesn't tell of two busy instances: {scale_in}")
    return {"generated": generated, "resumed": resumed, "total": total}


def _measure_tokens(up: EndpointUp, seed: int) -> int:
    """Return the number of tokens that an instance generates in TEXT_S while the others generate, too."""
    started = time.monotonic()
    for sent in _send(up, "measured", seed, RATE_TOKENS):
        text(sent)
    return min(MAX_TOKENS, round(RATE_TOKENS * TEXT_S / (time.monotonic() - started)))


def _send(up: EndpointUp, name: str, seed: int, tokens: int) -> list[Sent]:
    """Send a request for each instance, with the same texts whatever the name of their jobs."""
    sent = []
    for number in range(INSTANCES):
        parameters = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0.8, "seed": seed}
        body = json.dumps({"inputs": f"{number} times", "parameters": parameters}).encode()
        attributes = f"job={name}-{number}"
        sent.append(up.submit("e", body=body, ContentType="application/json", CustomAttributes=attributes))
    return sent


def text(sent: Sent) -> str:
    """Return the generated text, once it is there. Raises ValueError for a failure."""
    eventually(lambda: sent.outputs() or sent.failures(), DONE_TIMEOUT_S)
    if failures := sent.failures():
        raise ValueError(f"a request failed: {failures}")
    [item] = json.loads(sent.outputs()[0]["body"])
    return str(item["generated_text"])


def _generated(up: EndpointUp) -> dict[str, int]:
    """Return the tokens that each instance that answers has generated, by their ports."""
    found = {}
    for pid in up.processes():
        try:
            process = psutil.Process(pid)
            if "container" not in process.cmdline():
                continue
            port = process.environ()["SAGEMAKER_BIND_TO_PORT"]
            lines = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S, trust_env=False).text.splitlines()
        except (psutil.Error, httpx.TransportError):
            continue
        found[port] = sum(int(float(line.split()[-1])) for line in lines if line.startswith(f"{_GENERATED} "))
    return found


def _logged(up: EndpointUp, action: str) -> list[dict[str, Any]]:
    """Return the lines of all instances' logs that tell of an action."""
    found = re.findall(r"^\[e i-\w+\] (\{.*\})$", up.log(), re.MULTILINE)
    return [line for line in map(json.loads, found) if line.get("action") == action]
