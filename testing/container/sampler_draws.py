"""Many tokens drawn by the sampler, and a test of their distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from container.engine.sequence import Sampling
from container.engine.worker.sampler import Row, choose

Sampler = Callable[[torch.Tensor, Sequence[Row]], torch.Tensor]
"""Type of `choose`, or of a function that a test puts in its place."""

CHUNK = 2_000
"""Number of rows at once, so that memory stays small and fits a core's own cache."""


def row(position: int = 20, generated: int = 5, **parameters: Any) -> Row:
    return Row(Sampling(max_new_tokens=99, **parameters), position, generated)


def tokens(scores: torch.Tensor, rows: Sequence[Row], sampler: Sampler = choose) -> list[int]:
    """Choose the token of each row of the scores [N, V], which are left unchanged."""
    chosen = sampler(scores.clone(), rows).argmax(-1)[: len(rows)].tolist()
    return [int(token) for token in chosen]


def tokens_of_one(logits: torch.Tensor, rows: Sequence[Row], sampler: Sampler = choose) -> list[int]:
    """Choose the token of each row, all for the same scores [V]."""
    chunks = [rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK)]
    return [token for chunk in chunks for token in tokens(logits.expand(len(chunk), -1), chunk, sampler)]


def draw_tokens(logits: torch.Tensor, count: int, **parameters: Any) -> list[int]:
    """Draw `count` tokens for the same scores [V], with the seeds 0, 1, 2, …"""
    return tokens_of_one(logits, [row(seed=seed, **parameters) for seed in range(count)])


def p_value(drawn: list[int], probabilities: torch.Tensor) -> float:
    """Compute the p-value of Pearson's chi-square test; 0 if something impossible was drawn.

    Tokens expected fewer than five times share one cell, with as many more of the rarest as give that cell five.
    """
    observed = torch.bincount(torch.tensor(drawn), minlength=len(probabilities)).double()
    if observed[probabilities == 0].any():
        return 0.0
    expected, order = (probabilities.double() * len(drawn)).sort()
    observed = observed[order]
    pooled = (expected < 5) | (expected.cumsum(0) - expected < 5)
    seen, due = (torch.cat([cells[~pooled], cells[pooled].sum()[None]]) for cells in (observed, expected))
    chi_square = ((seen - due) ** 2 / due).sum()
    freedom = torch.tensor(len(due) - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, chi_square / 2))
