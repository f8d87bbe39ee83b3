"""Metrics of the container: Prometheus text at `/metrics`. They never hold user text."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_DURATION = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0)
_PER_TOKEN = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Every metric of the container, in a registry of its own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.requests = counter("longhaul_requests", "Requests answered or abandoned", ["route", "outcome"])
        self.requests_running = gauge("longhaul_requests_running", "Requests being worked on")
        self.request_duration = histogram(
            "longhaul_request_duration_seconds", "Seconds from the first byte to the answer", buckets=_DURATION
        )
        self.sequences_waiting = gauge("longhaul_sequences_waiting", "Sequences queued for the engine")
        self.sequences_running = gauge("longhaul_sequences_running", "Sequences in the engine")
        self.sequences = counter("longhaul_sequences", "Sequences ended", ["finish_reason"])
        self.prompt_tokens = counter("longhaul_prompt_tokens", "Prompt tokens of started sequences")
        self.generation_tokens = counter("longhaul_generation_tokens", "Tokens generated")
        self.time_to_first_token = histogram(
            "longhaul_time_to_first_token_seconds",
            "Seconds from a sequence's admission to the queue to its first token",
            buckets=_LATENCY,
        )
        self.inter_token_latency = histogram(
            "longhaul_inter_token_latency_seconds", "Seconds between a sequence's tokens", buckets=_PER_TOKEN
        )
        self.kv_cache_usage = gauge("longhaul_kv_cache_usage_ratio", "Share of the KV cache that live sequences hold")
        self.preemptions = counter("longhaul_preemptions", "Sequences put back to make room; they lose nothing")
        self.engine_restarts = counter("longhaul_engine_restarts", "Engine processes restarted")
        self.resubmitted = counter(
            "longhaul_sequences_resubmitted", "Sequences that went on in a new engine; they lose nothing"
        )
        self.resumed_tokens = counter(
            "longhaul_tokens_resumed", "Tokens taken from the journal instead of being generated"
        )
        self.changed_prompts = counter(
            "longhaul_changed_prompts", "Texts that the journal has with another prompt, and that are generated anew"
        )
        self.journal_bytes = counter("longhaul_journal_bytes", "Bytes written to the journal")
        self.journal_unsaved = gauge(
            "longhaul_journal_unsaved_bytes", "Bytes that wait in memory to be written to the journal"
        )
        self.journal_errors = counter("longhaul_journal_errors", "Failures of the journal's store")
        self.journal_broken = gauge("longhaul_journal_broken", "1 while the journal's store fails; work goes on")
        self.ready = gauge("longhaul_ready", "1 while /ping answers 200")

    def render(self) -> bytes:
        return generate_latest(self._registry)
