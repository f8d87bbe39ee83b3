"""What CloudWatch is told of the whole server once a minute: the metrics that matter on SageMaker."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge

from container.telemetry.emf import Metric
from container.telemetry.metrics import Metrics


class ServerMetrics:
    """Owns how far the counters were when they were last told: CloudWatch sums up what has come since."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._told_at = clock()
        self._told: dict[str, float] = {}
        self._was_idle = True

    def take(self) -> tuple[Metric, ...]:
        """Since the last time. Nothing where there was nothing then and is nothing now: an idle server is silent."""
        metrics, now = self._metrics, self._clock()
        seconds, self._told_at = now - self._told_at, now
        tokens = self._growth("GenerationTokens", _total(metrics.generation_tokens))
        taken = (
            Metric("GenerationTokens", tokens, "Count"),
            Metric("GenerationTokensPerSecond", tokens / seconds if seconds > 0 else None, "Count/Second"),
            Metric("PromptTokens", self._growth("PromptTokens", _total(metrics.prompt_tokens)), "Count"),
            Metric("SequencesRunning", _value(metrics.sequences_running), "Count"),
            Metric("SequencesWaiting", _value(metrics.sequences_waiting), "Count"),
            Metric("KVCacheUsage", 100 * _value(metrics.kv_cache_usage), "Percent"),
            Metric("EngineRestarts", self._growth("EngineRestarts", _total(metrics.engine_restarts)), "Count"),
            Metric("TokensResumed", self._growth("TokensResumed", _total(metrics.resumed_tokens)), "Count"),
            Metric("JournalBroken", _value(metrics.journal_broken), "Count"),
            Metric("Invocations", self._growth("Invocations", _total(metrics.requests)), "Count"),
            Metric("InvocationsOpen", _value(metrics.requests_running), "Count"),
            Metric("InvocationErrors", self._growth("InvocationErrors", self._errors()), "Count"),
        )
        is_idle = not any(metric.value for metric in taken)
        was_idle, self._was_idle = self._was_idle, is_idle
        return () if is_idle and was_idle else taken

    def _errors(self) -> float:
        """Ours alone: what a client did wrong is nothing to wake anybody for."""
        return _total(self._metrics.requests, outcome="server_error")

    def _growth(self, name: str, total: float) -> float:
        before, self._told[name] = self._told.get(name, 0.0), total
        return total - before


def _total(counter: Counter, **labels: str) -> float:
    samples = (sample for family in counter.collect() for sample in family.samples if sample.name.endswith("_total"))
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def _value(gauge: Gauge) -> float:
    return sum(sample.value for family in gauge.collect() for sample in family.samples)
