"""Metrics of the whole server that CloudWatch gets once a minute: those that matter on SageMaker."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge

from container.telemetry.emf import Metric
from container.telemetry.metrics import Metrics


class ServerMetrics:
    """Owns the counters' values at the last collection: CloudWatch sums up the growth since then."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._collected_at = clock()
        self._totals: dict[str, float] = {}
        self._was_idle = True

    def collect(self) -> tuple[Metric, ...]:
        """Return the metrics since the last call. An idle server that was idle before has none."""
        metrics, now = self._metrics, self._clock()
        seconds, self._collected_at = now - self._collected_at, now
        tokens = self._growth("GenerationTokens", _total(metrics.generation_tokens))
        # An error of the client's is nothing to raise an alarm for.
        errors = _total(metrics.requests, outcome="server_error")
        collected = (
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
            Metric("InvocationErrors", self._growth("InvocationErrors", errors), "Count"),
        )
        is_idle = not any(metric.value for metric in collected)
        was_idle, self._was_idle = self._was_idle, is_idle
        return () if is_idle and was_idle else collected

    def _growth(self, name: str, total: float) -> float:
        before, self._totals[name] = self._totals.get(name, 0.0), total
        return total - before


def _total(counter: Counter, **labels: str) -> float:
    samples = (sample for family in counter.collect() for sample in family.samples if sample.name.endswith("_total"))
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def _value(gauge: Gauge) -> float:
    return sum(sample.value for family in gauge.collect() for sample in family.samples)
