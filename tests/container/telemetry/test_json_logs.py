from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

import pytest

from container.telemetry.json_logs import JSONFormatter, invocation_id
from container.telemetry.metrics import Metrics
from testing.server import Server, eventually

CANARY = "xyzzy-canary"


def line(message: str, **fields: Any) -> dict[str, Any]:
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "container.test", **fields})
    written = JSONFormatter().format(record)
    assert "\n" not in written
    parsed: dict[str, Any] = json.loads(written)
    return parsed


def test_a_log_line_is_one_json_object() -> None:
    logged = line("two\nlines", action="test", size=3)
    assert (logged["message"], logged["action"], logged["size"]) == ("two\nlines", "test", 3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", logged["time"])


def test_values_json_lacks_become_text() -> None:
    assert line("odd", thing={1})["thing"] == "{1}"


def test_a_traceback_is_a_field() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logged = line("failed", exc_info=sys.exc_info())
    assert logged["traceback"].endswith("ValueError: broken")


def test_log_line_has_invocation_id() -> None:
    token = invocation_id.set("mine")
    try:
        assert line("working")["invocation_id"] == "mine"
    finally:
        invocation_id.reset(token)
    assert "invocation_id" not in line("idle")


def test_metrics_are_in_prometheus_text() -> None:
    metrics = Metrics()
    metrics.requests.labels("/invocations", "ok").inc()
    assert b'longhaul_requests_total{outcome="ok",route="/invocations"} 1.0' in metrics.render()


# End to end


def ends(server: Server, invocation: str) -> list[dict[str, Any]]:
    """Return the log lines that say how an invocation ended."""
    return [entry for entry in server.log_lines() if entry.get("invocation_id") == invocation]


def test_answer_has_id_of_log_line(server: Server) -> None:
    response = server.post(json={"inputs": "a", "parameters": {"max_new_tokens": 2, "ignore_eos": True}})
    (logged,) = eventually(lambda: ends(server, response.headers["x-longhaul-invocation-id"]))
    assert (logged["action"], logged["route"], logged["status"]) == ("invocation_end", "/invocations", 200)
    assert (logged["prompt_tokens"], logged["completion_tokens"]) == (1, 2)


def test_sagemakers_inference_id_is_the_invocations_id(server: Server) -> None:
    headers = {"X-Amzn-SageMaker-Inference-Id": "inference-7"}
    assert server.post(json={"inputs": 1}, headers=headers).headers["x-longhaul-invocation-id"] == "inference-7"
    (logged,) = eventually(lambda: ends(server, "inference-7"))
    assert logged["status"] == 400


def test_malformed_inference_id_is_not_used(server: Server) -> None:
    headers = {"X-Amzn-SageMaker-Inference-Id": f"{CANARY}!"}
    assert CANARY not in server.post(json={"inputs": 1}, headers=headers).headers["x-longhaul-invocation-id"]


def test_metrics_count_requests_tokens_and_latencies(server: Server) -> None:
    names = ["generation_tokens_total", "prompt_tokens_total", "time_to_first_token_seconds_count", "requests_total"]
    before = [server.metric(f"longhaul_{name}") for name in names]
    server.ask({"inputs": ["a", "a"], "parameters": {"max_new_tokens": 3, "ignore_eos": True}})
    eventually(lambda: server.metric("longhaul_requests_total") > before[-1])
    after = [server.metric(f"longhaul_{name}") for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [6, 2, 2, 1]


REQUESTS: list[dict[str, Any]] = [
    {"json": {"inputs": CANARY, "parameters": {"max_new_tokens": 2, "stop": CANARY}}},
    {"json": {"inputs": CANARY, "parameters": {"temperature": CANARY}}},
    {"json": {"inputs": {CANARY: CANARY}}},
    {"json": {"inputs": f"{CANARY} " * 9000}},
    {"json": {"messages": [{"role": "user", "content": {"text": CANARY}}]}},
    {"json": {"messages": [{"role": CANARY, "content": CANARY}], "max_tokens": 2}},
    {"json": {"messages": [{"role": f"{CANARY}!", "content": CANARY}], "max_tokens": 2}},
    {"json": {"prompt": CANARY, "user": CANARY, "max_tokens": 0}},
    {"content": f'{{"inputs": "{CANARY}'},
    {"content": CANARY.encode("utf-16"), "headers": {"content-type": "text/plain"}},
    {
        "content": CANARY,
        "headers": {"content-type": "text/plain", "X-Amzn-SageMaker-Custom-Attributes": f"temperature={CANARY}"},
    },
    {"content": CANARY, "headers": {"content-type": f"text/{CANARY}"}},
    {"content": f'{{"inputs": "{CANARY}"\n{CANARY}\n', "headers": {"content-type": "application/jsonlines"}},
]


@pytest.mark.parametrize("asked", REQUESTS)
def test_user_text_stays_out_of_errors(server: Server, asked: dict[str, Any]) -> None:
    response = server.post(**asked)
    assert CANARY not in response.text


def test_user_text_stays_out_of_logs(server: Server) -> None:
    answers = [server.post(f"{path}?{CANARY}", **each) for each in REQUESTS for path in ("/invocations", f"/{CANARY}")]
    last = answers[-2].headers["x-longhaul-invocation-id"]
    eventually(lambda: ends(server, last))
    assert CANARY not in server.log() and CANARY not in server.metrics()
