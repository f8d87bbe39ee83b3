"""Throughput and inter-token latency of one system with one model: so many prompts at once, each as long, greedy.

limit    time to read the weights once a step, by the memory bandwidth measured here: no system decodes faster
engine   the engine's batch in this process, whose reports have times
served   `./serve` over HTTP
library  `transformers serve --continuous-batching` over HTTP, with PyTorch's attention: its own kernels need a network
static   `model.generate` on all rows at once

Reading prompts counts: only `engine` tells the tokens behind the first ones apart.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.serving import Served

from .engine import Engine, Output, make_prompts
from .library_server import LibraryServer
from .random_model import folder_of
from .settings import Settings

Generate = Callable[[list[list[int]]], int]
"""Generates from prompts. Returns the number of tokens."""
SYSTEMS = ("limit", "engine", "served", "library", "static")
_COPIED_BYTES = {"cuda": 1 << 31, "cpu": 1 << 27}
_ROUNDS = 2


def run(settings: Settings, shape: str, system: str) -> dict[str, Any]:
    measures = {"limit": _limit, "engine": _engine, "served": _served, "library": _library, "static": _static}
    return {"status": "measured", "shape": shape, "system": system, **measures[system](settings, shape)}


def _limit(settings: Settings, shape: str) -> dict[str, Any]:
    bandwidth = measure_bandwidth(settings.device)
    weights = _read_bytes(settings, shape)
    rates = {str(rows): rows * bandwidth / weights for rows in settings.rows}
    return {"bandwidth_gb_s": bandwidth / 1e9, "weights_gb": weights / 1e9, "tokens_per_s": rates}


def measure_bandwidth(device: str) -> float:
    """Measure the bytes that a copy within the device's memory reads and writes in a second, the best of five."""
    source = torch.ones(_COPIED_BYTES[device.partition(":")[0]], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(6):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * source.numel() / best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _read_bytes(settings: Settings, shape: str) -> int:
    """Return the bytes of the weights that each step reads: all but the embeddings of the input tokens."""
    config = AutoConfig.from_pretrained(folder_of(settings, shape))
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    unread = model.get_input_embeddings().weight.numel()
    size = int(getattr(torch, settings.dtype).itemsize)
    return size * (int(sum(weight.numel() for weight in model.parameters())) - int(unread))


def _engine(settings: Settings, shape: str) -> dict[str, Any]:
    engine = Engine(str(folder_of(settings, shape)), device=settings.device, dtype=settings.dtype)
    latencies: dict[str, dict[str, float]] = {}

    def generate(prompts: list[list[int]]) -> int:
        outputs = engine.generate(prompts, settings.new_tokens)
        latencies[str(len(prompts))] = decode_latency(outputs)
        return sum(len(output.ids) for output in outputs)

    figures = _measure(settings, engine.info.vocab_size, generate)
    engine.close()
    return figures | {"decode": latencies, "attention": engine.info.attention}


def decode_latency(outputs: list[Output]) -> dict[str, float]:
    """Return milliseconds between tokens, and tokens a second once all rows have their first."""
    gaps = sorted(b - a for output in outputs for a, b in zip(output.times_s, output.times_s[1:], strict=False))
    begin, end = max(output.times_s[0] for output in outputs), max(output.times_s[-1] for output in outputs)
    decoded = sum(time_s > begin for output in outputs for time_s in output.times_s)
    return {
        "itl_p50_ms": 1e3 * statistics.median(gaps),
        "itl_p99_ms": 1e3 * gaps[int(0.99 * (len(gaps) - 1))],
        "tokens_per_s": decoded / (end - begin),
    }


def _served(settings: Settings, shape: str) -> dict[str, Any]:
    environment: dict[str, Any] = {**settings.server, "LONGHAUL_DTYPE": settings.dtype}
    served = Served(folder_of(settings, shape), **environment)

    def generate(prompts: list[list[int]]) -> int:
        common = {"max_tokens": settings.new_tokens, "temperature": 0, "ignore_eos": True}
        body = b"".join(json.dumps({"prompt": prompt} | common).encode() + b"\n" for prompt in prompts)
        connection = served.connect()
        connection.request("POST", "/invocations", body, {"Content-Type": "application/jsonlines"})
        answers = [json.loads(line) for line in connection.getresponse().read().splitlines()]
        connection.close()
        return sum(answer["usage"]["completion_tokens"] for answer in answers)

    try:
        return _measure(settings, _vocabulary(settings, shape), generate)
    finally:
        served.close()


def _library(settings: Settings, shape: str) -> dict[str, Any]:
    server = LibraryServer(folder_of(settings, shape), settings.device, settings.dtype)

    def generate(prompts: list[list[int]]) -> int:
        with ThreadPoolExecutor(len(prompts)) as threads:
            return sum(threads.map(lambda prompt: server.complete(prompt, settings.new_tokens), prompts))

    try:
        return _measure(settings, _vocabulary(settings, shape), generate)
    finally:
        server.close()


def _static(settings: Settings, shape: str) -> dict[str, Any]:
    torch.set_grad_enabled(False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder_of(settings, shape), dtype=getattr(torch, settings.dtype), attn_implementation="sdpa"
    )
    model.to(settings.device)

    def generate(prompts: list[list[int]]) -> int:
        ids = torch.tensor(prompts, device=settings.device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=settings.new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return int(out.shape[0] * (out.shape[1] - ids.shape[1]))

    return _measure(settings, _vocabulary(settings, shape), generate)


def _vocabulary(settings: Settings, shape: str) -> int:
    return int(AutoConfig.from_pretrained(folder_of(settings, shape)).vocab_size)


def _measure(settings: Settings, vocabulary: int, generate: Generate) -> dict[str, Any]:
    """Measure new tokens a second for each number of rows, the best round. Each round has prompts of its own."""
    generate(make_prompts(settings.rows[-1], settings.prompt_tokens, vocabulary, seed=99))  # warms up
    rates: dict[str, float] = {}
    for rows in settings.rows:
        for round_ in range(_ROUNDS):
            prompts = make_prompts(rows, settings.prompt_tokens, vocabulary, seed=1 + round_ + 10 * rows)
            started = time.perf_counter()
            tokens = generate(prompts)
            seconds = time.perf_counter() - started
            assert tokens == rows * settings.new_tokens, f"{tokens} tokens, not {rows * settings.new_tokens}"
            rates[str(rows)] = max(rates.get(str(rows), 0.0), tokens / seconds)
    return {"tokens_per_s": rates}
