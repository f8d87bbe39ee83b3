from __future__ import annotations

import pytest

from container.telemetry.cloudwatch import ServerMetrics
from container.telemetry.metrics import Metrics


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def collected(server: ServerMetrics) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in server.collect()}


def test_counters_report_their_growth() -> None:
    metrics, clock = Metrics(), Clock()
    server = ServerMetrics(metrics, clock)
    metrics.generation_tokens.inc(30)
    metrics.engine_restarts.inc()
    clock.now += 60
    first = collected(server)
    assert (first["GenerationTokens"], first["GenerationTokensPerSecond"], first["EngineRestarts"]) == (30, 0.5, 1)
    metrics.generation_tokens.inc(12)
    clock.now += 60
    second = collected(server)
    assert (second["GenerationTokens"], second["EngineRestarts"]) == (12, 0)


def test_gauges_report_their_values() -> None:
    metrics = Metrics()
    metrics.sequences_running.set_function(lambda: 3)
    metrics.sequences_waiting.set(5)
    metrics.kv_cache_usage.set(0.25)
    metrics.requests_running.set(2)
    now = collected(ServerMetrics(metrics, Clock()))
    names = ("SequencesRunning", "SequencesWaiting", "KVCacheUsage", "InvocationsOpen")
    assert [now[name] for name in names] == [3, 5, 25, 2]


def test_only_server_errors_are_errors() -> None:
    metrics = Metrics()
    for outcome in ("ok", "ok", "client_error", "server_error", "abandoned"):
        metrics.requests.labels("/invocations", outcome).inc()
    now = collected(ServerMetrics(metrics, Clock()))
    assert (now["Invocations"], now["InvocationErrors"]) == (5, 1)


def test_idle_server_reports_zero_once() -> None:
    metrics = Metrics()
    server = ServerMetrics(metrics, Clock())
    assert collected(server) == {}
    metrics.sequences_running.set(1)
    assert collected(server)["SequencesRunning"] == 1
    metrics.sequences_running.set(0)
    assert collected(server)["SequencesRunning"] == 0
    assert collected(server) == {}


def test_no_elapsed_time_gives_no_rate() -> None:
    metrics = Metrics()
    server = ServerMetrics(metrics, Clock())
    metrics.generation_tokens.inc()
    assert collected(server)["GenerationTokensPerSecond"] is None


@pytest.mark.parametrize("name", ["GenerationTokens", "PromptTokens", "InvocationErrors", "EngineRestarts"])
def test_alarm_metrics_keep_their_names(name: str) -> None:
    metrics = Metrics()
    metrics.sequences_running.set(1)
    assert name in collected(ServerMetrics(metrics, Clock()))
