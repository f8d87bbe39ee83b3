"""Metrics of the container: Prometheus text at `/metrics`. They never hold user text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_DURATION = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0)
_PER_TOKEN = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Every metric of the container, in a registry of its own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "longhaul_requests", "Requests answered or abandoned", ["route", "outcome"], registry=registry
        )
        self.requests_running = Gauge("longhaul_requests_running", "Requests being worked on", registry=registry)
        self.request_duration = Histogram(
            "longhaul_request_duration_seconds", "From first byte to answer", buckets=_DURATION, registry=registry
        )
        self.sequences_waiting = Gauge(
            "longhaul_sequences_waiting", "Sequences queued for the engine", registry=registry
        )
        self.sequences_running = Gauge("longhaul_sequences_running", "Sequences in the engine", registry=registry)
        self.sequences = Counter("longhaul_sequences", "Sequences ended", ["finish_reason"], registry=registry)
        self.prompt_tokens = Counter("longhaul_prompt_tokens", "Prompt tokens of started sequences", registry=registry)
        self.generation_tokens = Counter("longhaul_generation_tokens", "Tokens generated", registry=registry)
        self.time_to_first_token = Histogram(
            "longhaul_time_to_first_token_seconds",
            "From a sequence's admission to the queue to its first token",
            buckets=_LATENCY,
            registry=registry,
        )
        self.inter_token_latency = Histogram(
            "longhaul_inter_token_latency_seconds",
            "Between a sequence's tokens",
            buckets=_PER_TOKEN,
            registry=registry,
        )
        self.kv_cache_usage = Gauge(
            "longhaul_kv_cache_usage_ratio", "Share of the KV cache that live sequences hold", registry=registry
        )
        self.preemptions = Counter(
            "longhaul_preemptions", "Sequences put back to make room; they lose nothing", registry=registry
        )
        self.engine_restarts = Counter("longhaul_engine_restarts", "Engine processes restarted", registry=registry)
        self.resubmitted = Counter(
            "longhaul_sequences_resubmitted",
            "Sequences that went on in a new engine; they lose nothing",
            registry=registry,
        )
        self.resumed_tokens = Counter(
            "longhaul_tokens_resumed", "Tokens taken from the journal instead of being generated", registry=registry
        )
        self.journal_bytes = Counter("longhaul_journal_bytes", "Bytes written to the journal", registry=registry)
        self.journal_unsaved = Gauge(
            "longhaul_journal_unsaved_bytes", "What waits to be written to the journal, in memory", registry=registry
        )
        self.journal_errors = Counter("longhaul_journal_errors", "Failures of the journal's store", registry=registry)
        self.journal_broken = Gauge(
            "longhaul_journal_broken", "1 while the journal's store fails; work goes on", registry=registry
        )
        self.ready = Gauge("longhaul_ready", "1 while /ping answers 200", registry=registry)

    def render(self) -> bytes:
        return generate_latest(self._registry)


def outcome_of(status: int) -> str:
    """How a request's HTTP status is counted."""
    return "ok" if status < 400 else "client_error" if status < 500 else "server_error"
