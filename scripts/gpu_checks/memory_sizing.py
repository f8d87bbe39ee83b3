"""Size of the KV cache that the engine chooses by itself, and whether the widest step fits beside it."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from .engine import Engine, make_prompts
from .random_model import folder_of
from .settings import Settings

MIN_USE = 0.8
"""Least share of a GPU's memory that is used in the end: the engine is to take what there is."""
_ROWS_OF_CPU = 8


def run(settings: Settings, shape: str) -> dict[str, Any]:
    engine = Engine(str(folder_of(settings, shape)), device=settings.device, dtype=settings.dtype)
    info = engine.info
    rows = info.max_running if settings.is_cuda else _ROWS_OF_CPU
    # Fills a step with prompts, then as many rows as may run with single tokens.
    prompts = make_prompts(rows, min(info.max_batch_tokens, settings.prompt_tokens), info.vocab_size)
    engine.generate(prompts, new_tokens=8)
    longest = make_prompts(1, info.max_sequence_tokens // 2, info.vocab_size, seed=2)
    if settings.is_cuda:
        engine.generate(longest, new_tokens=2)
    engine.close()
    figures: dict[str, Any] = {
        "kv_cache_tokens": info.kv_cache_tokens,
        "kv_cache_gb": round(info.kv_cache_tokens * engine.loaded.kv_bytes_per_token / 1e9, 3),
        "rows": rows,
        "longest_prompt": len(longest[0]) if settings.is_cuda else len(prompts[0]),
    }
    if settings.is_cuda:
        total = torch.cuda.get_device_properties(0).total_memory
        peak = torch.cuda.max_memory_reserved()
        figures |= {"total_gb": round(total / 1e9, 1), "peak_gb": round(peak / 1e9, 1), "use": round(peak / total, 3)}
        is_whole = info.kv_cache_tokens >= 0.99 * info.max_running * info.max_model_len  # more would never be used
        assert is_whole or peak >= MIN_USE * total, f"the GPU is not used: {figures}"
    else:
        assert figures["kv_cache_gb"] * 1e9 <= psutil.virtual_memory().total / 2, f"more than half of all: {figures}"
    return figures
