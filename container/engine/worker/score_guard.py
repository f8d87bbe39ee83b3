"""The guard against scores that no token may come of: NaN, infinite, or all the same.

Weights or activations that overflow end in such scores, and a maximum is taken of them all the same: it is one and the
same token, mostly one without a text, until the sequence has its full length.
"""

from __future__ import annotations

import math

import torch

NOT_NUMBERS = "are not numbers (NaN or infinite)"
ALL_EQUAL = "are all equal"
_SAMPLE = 256
"""Tokens whose scores are compared with the highest: where all of these equal it, so do the others."""


class ScoreGuard:
    """Looks at a step's scores on the device, and tells on the host which rows are at fault, once the step is done.

    The same tensor operations run in each step, whatever it sees: one pass over the scores, and no synchronization.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        """`rows` is the most that a step can have."""
        # [2, rows]: the highest score of each row, which is NaN if any of them is, and the lowest of its sample.
        self._seen = torch.zeros(2, rows, device=device)
        self._has_head = False

    def watch(self, head: torch.nn.Module) -> None:
        """Look at what the model's head gives, before the model itself bounds it and so makes infinite scores finite.

        The head must be given the rows of the scores alone.
        """
        head.register_forward_hook(lambda module, inputs, output: self._note(output.flatten(0, -2)))
        self._has_head = True

    def look(self, scores: torch.Tensor) -> None:
        """Look at scores [N, V] as they come from the model: before penalties and biases."""
        if not self._has_head:
            self._note(scores)

    def _note(self, scores: torch.Tensor) -> None:
        rows = scores.shape[0]
        self._seen[0, :rows] = scores.amax(dim=-1)
        self._seen[1, :rows] = scores[:, :_SAMPLE].amin(dim=-1)

    def faults(self, rows: int) -> dict[int, str]:
        """Return what the scores of the last step are, of those of its first `rows` rows that no token may come of.

        A row may have any number of scores that are -inf, with which a model rules out tokens, but not all of them.
        """
        pairs = enumerate(zip(*self._seen[:, :rows].tolist(), strict=True))
        return {
            row: ALL_EQUAL if math.isfinite(highest) else NOT_NUMBERS
            for row, (highest, lowest) in pairs
            if not math.isfinite(highest) or highest == lowest
        }


def describe_fault(fault: str, token_number: int, dtype: torch.dtype) -> str:
    """Return the error of a sequence whose output token `token_number`, counted from 1, could not be chosen."""
    sentence = f"the model's scores {fault} at output token {token_number}"
    if dtype.itemsize >= torch.float32.itemsize:
        return f"{sentence}: its weights may be damaged"
    name = str(dtype).removeprefix("torch.")
    return f"{sentence}: {name} may be too small for this model, try LONGHAUL_DTYPE=float32"
