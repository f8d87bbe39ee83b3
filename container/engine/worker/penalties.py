"""Scores changed by what a sequence already holds, and by its own bias for single tokens.

Repetition penalty (Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1; `transformers`' rule: prompt and
output), frequency and presence penalties (OpenAI's rule: output only), then `logit_bias`, which is added last. Rows
that ask for none of them are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from container.engine.sequence import Sampling

MIN_REPETITION_PENALTY = 1e-30
"""Lower ones count as this one: scores divided by them would be infinite, and so all alike."""


@dataclass(slots=True)
class TokenCounts:
    """The tokens that one sequence holds, [V] each. Each token is counted once, not in every step."""

    in_prompt: torch.Tensor  # bool
    in_output: torch.Tensor  # int32, times generated
    generated: int = 0

    @classmethod
    def of_prompt(cls, prompt_ids: Sequence[int], vocabulary: int, device: torch.device) -> TokenCounts:
        in_prompt = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        in_prompt[torch.tensor(prompt_ids, device=device)] = True
        return cls(in_prompt, torch.zeros(vocabulary, dtype=torch.int32, device=device))

    def add(self, output_ids: Sequence[int]) -> None:
        """Count the tokens that are new in `output_ids`, which are all that were generated so far."""
        new = torch.tensor(output_ids[self.generated :], device=self.in_output.device, dtype=torch.int64)
        self.in_output.index_add_(0, new, torch.ones_like(new, dtype=torch.int32))
        self.generated = len(output_ids)


@dataclass(frozen=True, slots=True)
class Penalized:
    """One row of the scores and what changes it."""

    index: int
    sampling: Sampling
    counts: TokenCounts


def penalize(scores: torch.Tensor, penalized: Sequence[Penalized]) -> None:
    """Change the rows [R of N, V] in place."""
    if not penalized:
        return
    rows = torch.tensor([row.index for row in penalized], device=scores.device)
    counts = torch.stack([row.counts.in_output for row in penalized])
    seen = torch.stack([row.counts.in_prompt for row in penalized]) | (counts > 0)
    repetition, frequency, presence = (
        torch.tensor(values, dtype=scores.dtype, device=scores.device)[:, None]
        for values in (
            [max(row.sampling.repetition_penalty, MIN_REPETITION_PENALTY) for row in penalized],
            [row.sampling.frequency_penalty for row in penalized],
            [row.sampling.presence_penalty for row in penalized],
        )
    )
    changed = scores[rows]
    changed = torch.where(seen, torch.where(changed > 0, changed / repetition, changed * repetition), changed)
    scores[rows] = changed - frequency * counts - presence * (counts > 0)


def bias(scores: torch.Tensor, biases: Sequence[tuple[int, int, float]]) -> None:
    """Add to single scores, given as (row, token id, bias), in place."""
    if biases:
        rows, token_ids, amounts = zip(*biases, strict=True)
        indices = (torch.tensor(rows, device=scores.device), torch.tensor(token_ids, device=scores.device))
        scores.index_put_(indices, torch.tensor(amounts, dtype=scores.dtype, device=scores.device), accumulate=True)
