"""Token choice for a whole batch: greedy rows untouched, each sampled row by its own parameters.

A sampled token is a function of the row's scores, its `Sampling`, and one uniform number made from (seed, absolute
position), so that it is the same in any batch and after a resume. The scheme is frozen: changing it changes what a
seed gives. Probabilities after temperature are sorted in falling order; `top_k`, then `top_p` keep a prefix (the order
and the rules of `transformers`' warpers); the token is where the cumulated probability passes u times the kept mass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .sequence import Sampling

# Sorted candidates looked at before the whole vocabulary: most draws fall within the first, and a partial sort of a
# vocabulary of 50,000 costs a tenth of a full one.
CANDIDATES = (256, 8192)

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    """SplitMix64's finalizer (Steele et al. 2014, https://doi.org/10.1145/2714064.2660195)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, from the seed and the token's absolute position (prompt included)."""
    key = _mix((seed + _GOLDEN) & _MASK64)
    return (_mix((key + (position + 1) * _GOLDEN) & _MASK64) >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a step's scores: how to sample the token at `position`, of which `generated` came before it."""

    sampling: Sampling
    position: int
    generated: int


class _State(Protocol):
    initial_tokens: list[int]
    position_offset: int
    _true_initial_tokens: int
    logit_processor_kwargs: dict[str, Any]


class _FutureState(Protocol):
    state: _State
    has_new_token: bool


@dataclass(frozen=True, slots=True)
class _SampledRows:
    """Tensors of the rows that sample, [R] each."""

    rows: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor  # vocabulary size and more where off
    top_p: torch.Tensor
    uniform: torch.Tensor


class Sampler:
    """Takes the place of `transformers`' ContinuousBatchingLogitsProcessorList; the library then takes the argmax.

    Owns the parameters of the step being prepared. The library calls `prepare_tensor_args` on the host, then
    `__call__` in the same step's forward pass: this holds without CUDA graphs, which would replay an older step's.
    """

    do_processing = True
    tensors_required = 0

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """No defaults: every request carries its `Sampling`."""

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """The edge has checked the values."""

    def prepare_tensor_args(self, requests_in_batch: Sequence[_FutureState], arg_storage: torch.Tensor) -> torch.Tensor:
        """Note the parameters of the rows that get a token. They come first in the scores, in this order."""
        self._rows = [_row(future.state) for future in requests_in_batch if future.has_new_token]
        return arg_storage

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        """scores [N, V] float32, whose first rows are those of `prepare_tensor_args`. Their argmax is the token."""
        return choose(scores, self._rows)


def _row(state: _State) -> Row:
    # Preemption moves generated tokens into `initial_tokens`; `_true_initial_tokens` then has the prompt's length.
    prompt_tokens = state._true_initial_tokens or len(state.initial_tokens)
    sampling: Sampling = state.logit_processor_kwargs["sampling"]
    return Row(sampling, state.position_offset, state.position_offset - prompt_tokens)


def choose(scores: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Scores [N, V] whose argmax over the first `len(rows)` rows is each row's next token. Changed in place."""
    _hold_back_stop_tokens(scores, rows)
    sampled = _sampled_rows(rows, scores.shape[1], scores.device)
    if sampled is None:
        return scores
    tokens = _sample(scores.index_select(0, sampled.rows), sampled)
    scores[sampled.rows, tokens] = float("inf")
    return scores


def _hold_back_stop_tokens(scores: torch.Tensor, rows: Sequence[Row]) -> None:
    held = [
        (index, token_id)
        for index, row in enumerate(rows)
        if row.generated < row.sampling.min_new_tokens
        for token_id in row.sampling.stop_token_ids
    ]
    if held:
        index, token_ids = torch.tensor(held, device=scores.device).unbind(1)
        scores[index, token_ids] = float("-inf")


def _sampled_rows(rows: Sequence[Row], vocabulary: int, device: torch.device) -> _SampledRows | None:
    picked = [(index, row) for index, row in enumerate(rows) if row.sampling.temperature > 0]
    if not picked:
        return None
    values = [row.sampling for _, row in picked]
    return _SampledRows(
        torch.tensor([index for index, _ in picked], device=device),
        torch.tensor([s.temperature for s in values], device=device, dtype=torch.float32),
        torch.tensor([s.top_k or vocabulary for s in values], device=device),
        torch.tensor([s.top_p for s in values], device=device, dtype=torch.float64),
        torch.tensor(
            [uniform(row.sampling.seed, row.position) for _, row in picked], device=device, dtype=torch.float64
        ),
    )


def _sample(scores: torch.Tensor, rows: _SampledRows) -> torch.Tensor:
    """Tokens [R] for scores [R, V]: from the best candidates where they suffice, from ever more where not."""
    # Falling from 0, they can't overflow however cold it is.
    scaled = (scores - scores.amax(dim=-1, keepdim=True)) / rows.temperature[:, None]
    log_mass = torch.logsumexp(scaled, dim=-1, keepdim=True)
    tokens = torch.zeros(scores.shape[0], dtype=torch.int64, device=scores.device)
    left = torch.arange(scores.shape[0], device=scores.device)
    vocabulary = scores.shape[1]
    for candidates in (*(c for c in CANDIDATES if c < vocabulary), vocabulary):
        best, ids = torch.topk(scaled[left], candidates, dim=-1)
        probabilities = torch.exp(best.double() - log_mass[left])
        place, settled = _draw(
            probabilities, rows.top_k[left], rows.top_p[left], rows.uniform[left], vocabulary=vocabulary
        )
        tokens[left[settled]] = ids[settled].gather(1, place[settled, None]).squeeze(1)
        left = left[~settled]
        if not left.numel():
            break
    return tokens


def _draw(
    probabilities: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor, *, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places [R] drawn from falling probabilities [R, C], and whether C candidates were enough to tell [R].

    With c[j] the mass of candidates 0..j, a whole vocabulary having mass 1:
      m1 = c[k - 1], or 1 where top_k is off           the mass that top_k keeps
      last = the first j: c[j] >= top_p * m1           the last candidate that top_p keeps of it
      m2 = c[last], or m1 where top_p is off           the mass that both keep
      place = the first j: c[j] > uniform * m2
    """
    count = probabilities.shape[1]
    mass = probabilities.cumsum(1)
    is_all = count == vocabulary
    k_is_off = top_k >= vocabulary
    m1 = torch.where(k_is_off, 1.0, mass.gather(1, top_k.clamp(max=count)[:, None] - 1).squeeze(1))
    p_is_off = top_p >= 1
    last = torch.searchsorted(mass, (top_p * m1)[:, None]).squeeze(1)
    m2 = torch.where(p_is_off, m1, mass.gather(1, last.clamp(max=count - 1)[:, None]).squeeze(1))
    place = torch.searchsorted(mass, (uniform * m2)[:, None], right=True).squeeze(1)
    settled = (k_is_off | (top_k <= count)) & (p_is_off | (last < count)) & (place < count)
    # Rounding may leave the last few of 2^53 draws beyond all mass: they get the last candidate that has any.
    end = torch.searchsorted(mass, mass[:, -1:].contiguous()).squeeze(1)
    # A broken model's NaN is beyond every candidate. Its token means nothing, but the batch has to go on.
    return place.minimum(end).clamp(max=count - 1), settled | is_all
