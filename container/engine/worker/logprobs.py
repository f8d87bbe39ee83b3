"""Log probabilities of the chosen and the most likely tokens, from the model's own scores, before any change."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from container.engine.sequence import TokenLogprobs


class TopLogprobs:
    """Owns the most likely tokens of some rows of a step, taken before the scores are changed."""

    def __init__(self, scores: torch.Tensor, wanted: Sequence[tuple[int, int]]) -> None:
        """Take them from scores [N, V]. `wanted` are pairs of a row and a number of tokens, which may be 0."""
        self._wanted = wanted
        self._rows = torch.tensor([row for row, _ in wanted], device=scores.device)
        self._logprobs = torch.log_softmax(scores[self._rows], dim=-1)
        self._best = torch.topk(self._logprobs, max(1, *(best for _, best in wanted), 1), dim=-1)

    def of_choice(self, token_ids: torch.Tensor) -> dict[int, TokenLogprobs]:
        """Return the log probabilities by row, given the tokens [N] that were chosen in all rows."""
        chosen = self._logprobs.gather(1, token_ids[self._rows, None]).squeeze(1).tolist()
        values, ids = self._best.values.tolist(), self._best.indices.tolist()
        return {
            row: TokenLogprobs(chosen[index], list(zip(ids[index][:best], values[index][:best], strict=True)))
            for index, (row, best) in enumerate(self._wanted)
        }
