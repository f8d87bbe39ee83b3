"""bfloat16 by statistics: how far the batch's distributions are from float32's, beside how far a plain pass's are.

Both score the same tokens, those that the batch chose. Distances are Kullback-Leibler divergences in nats.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from testing.tiny_models import VOCABULARY, random_prompt, save_tiny_family

from .engine import Engine, Output
from .settings import Settings

MAX_RATIO = 1.5
"""Most that the batch's mean divergence may be of the plain pass's."""
MAX_LOST_SHARE = 0.02
"""Most by which the batch's share of equal best tokens may be below the plain pass's, beside what chance explains."""
_SLACK = 1e-5


def run(settings: Settings) -> dict[str, Any]:
    directory = save_tiny_family(Path(settings.folder) / "half", "llama", initializer_range=0.2)
    prompts = [random_prompt(20 + row, row) for row in range(settings.compared_rows)]
    engine = Engine(directory, device=settings.device, dtype="bfloat16", kv_cache_tokens=4096, max_batch_tokens=64)
    outputs = engine.generate(prompts, settings.compared_tokens, logprobs=VOCABULARY)
    engine.close()
    exact, plain = (
        torch.cat([_score(directory, dtype, device, p, o.ids) for p, o in zip(prompts, outputs, strict=True)])
        for dtype, device in ((torch.float32, "cpu"), (torch.bfloat16, settings.device))
    )
    ours = torch.cat([_reported(output) for output in outputs])
    figures: dict[str, Any] = {
        "attention": engine.info.attention,
        "positions": len(exact),
        "kl": _divergence(exact, ours),
        "kl_plain": _divergence(exact, plain),
        "equal_best": _equal_best(exact, ours),
        "equal_best_plain": _equal_best(exact, plain),
    }
    assert figures["kl"] <= MAX_RATIO * figures["kl_plain"] + _SLACK, figures
    lost = figures["equal_best_plain"] - figures["equal_best"]
    assert lost <= MAX_LOST_SHARE + 3 * _standard_error(figures["equal_best_plain"], len(exact)), figures
    return figures


def _score(directory: str, dtype: torch.dtype, device: str, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """Return the log probabilities [tokens, V] by which each of `ids` would be chosen."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager")
    model.to(device)
    logits = model(torch.tensor([prompt + ids[:-1]], device=device), logits_to_keep=len(ids)).logits[0]
    return torch.log_softmax(logits.float(), dim=-1).cpu()


def _reported(output: Output) -> torch.Tensor:
    """Return the log probabilities [tokens, V] that the batch reported."""
    rows = torch.full((len(output.logprobs), VOCABULARY), float("-inf"))
    for row, scored in enumerate(output.logprobs):
        ids, values = zip(*scored.top, strict=True)
        rows[row, list(ids)] = torch.tensor(values)
    assert torch.isfinite(rows).all(), "the batch did not report the whole vocabulary"
    return rows


def _divergence(exact: torch.Tensor, other: torch.Tensor) -> float:
    return float((exact.exp() * (exact - other)).sum(dim=-1).mean())


def _equal_best(exact: torch.Tensor, other: torch.Tensor) -> float:
    return float((exact.argmax(dim=-1) == other.argmax(dim=-1)).float().mean())


def _standard_error(share: float, count: int) -> float:
    """Return the standard error of the difference of two such shares of `count` positions."""
    return math.sqrt(2 * share * (1 - share) / count)
