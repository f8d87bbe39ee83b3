"""CUDA graphs beside eager steps, and asynchronous batching beside synchronous: the same tokens, and the time of each.

The library's own batch is measured in each mode, its start included, and the engine's in the mode that it chooses. On a
CPU the library has the plain mode only.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from testing.tiny_models import VOCABULARY, save_tiny_family

from .engine import Engine, make_prompts
from .settings import Settings

MODES = {
    "eager, sync": (False, False),
    "graphs, sync": (True, False),
    "eager, async": (False, True),
    "graphs, async": (True, True),
}
"""Whether the library's batch uses CUDA graphs and asynchronous batching."""
MIN_EQUAL_SHARE = 0.9
"""Least share of rows that are equal in two modes: padding to a graph's size changes sums, and so a few ties."""
_LAYERS = 8


def run(settings: Settings) -> dict[str, Any]:
    directory = save_tiny_family(
        Path(settings.folder) / "modes", "llama", num_hidden_layers=_LAYERS if settings.is_cuda else 2
    )
    prompts = make_prompts(settings.rows[-1], settings.prompt_tokens, VOCABULARY)
    names = list(MODES) if settings.is_cuda else list(MODES)[:1]
    rows: dict[str, list[list[int]]] = {}
    seconds: dict[str, float] = {}
    for name in names:
        rows[name], seconds[name] = _library(directory, settings, prompts, *MODES[name])
    engine = Engine(directory, device=settings.device, dtype="float32", kv_cache_tokens=_cache_tokens(settings))
    for todo in (make_prompts(len(prompts), settings.prompt_tokens, VOCABULARY, seed=2), prompts):
        started = time.perf_counter()
        rows["engine"] = [output.ids for output in engine.generate(todo, settings.new_tokens)]
        seconds["engine"] = time.perf_counter() - started
    config = engine.batch.continuous_batching_config
    graphs = config.use_cuda_graph  # for prompts and for decoding apart, once the library has decided
    engine.close()
    equal = {name: _equal_share(rows[names[0]], got) for name, got in rows.items()}
    figures: dict[str, Any] = {
        "seconds": seconds,
        "equal_rows": equal,
        "engine_uses_graphs": any(graphs) if isinstance(graphs, tuple) else bool(graphs),
        "engine_is_async": bool(config.use_async_batching),
    }
    assert min(equal.values()) >= MIN_EQUAL_SHARE, figures
    return figures


def _library(
    directory: str, settings: Settings, prompts: list[list[int]], graphs: bool, is_async: bool
) -> tuple[list[list[int]], float]:
    """Return the tokens and the seconds of the second of two runs: the first warms up."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
    model.to(settings.device)
    greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=settings.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    config = ContinuousBatchingConfig(
        num_blocks=max(16, _cache_tokens(settings) // 256),
        max_batch_tokens=256,
        use_cuda_graph=graphs,
        use_async_batching=is_async,
        auto_switch_to_flash=False,
        allow_block_sharing=False,
    )
    for _ in range(2):
        started = time.perf_counter()
        results = model.generate_batch(
            inputs=prompts, generation_config=greedy, continuous_batching_config=config, persistent_manager=True
        )
        seconds = time.perf_counter() - started
    rows = [result.generated_tokens for result in results.values()]
    assert len(rows) == len(prompts), "the library gave up rows"
    model.destroy_cached_continuous_batching_manager()
    return rows, seconds


def _cache_tokens(settings: Settings) -> int:
    return settings.rows[-1] * (settings.prompt_tokens + settings.new_tokens + 512)


def _equal_share(expected: list[list[int]], got: list[list[int]]) -> float:
    return sum(a == b for a, b in zip(expected, got, strict=True)) / len(expected)
