"""Token choice for a whole batch: greedy rows untouched, each sampled row by its own parameters.

First penalties, `logit_bias` and `min_new_tokens` change the scores, then greedy rows take the best. A sampled token is
the one with the largest sum of log probability and Gumbel noise (the Gumbel-max trick, Maddison et al. 2014,
https://arxiv.org/abs/1411.0030), among those that `top_k`, then `top_p`, then `min_p` keep (the order and the rules of
`transformers`' warpers). The noise is a hash of (seed, absolute position, token id), so that a token is the same in any
batch and after a resume: rounding can change it only where two tokens' sums nearly tie, however flat the scores are.
The scheme is frozen: changing it changes what a seed gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from container.engine.sequence import Sampling, TokenLogprobs
from container.engine.worker.logprobs import TopLogprobs
from container.engine.worker.penalties import Penalized, TokenCounts, bias, penalize
from container.engine.worker.score_guard import ScoreGuard

# Sorted candidates looked at before the whole vocabulary. What lies beyond them takes part as one: the maximum of many
# Gumbel variables is a Gumbel variable at the logarithm of their summed probability. Only if it wins is it looked into,
# so that the noise of a vocabulary of 50,000 is seldom computed. Part of the frozen scheme.
CANDIDATES = (256, 8192)

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _mix(z: int) -> int:
    """SplitMix64's finalizer (Steele et al. 2014, https://doi.org/10.1145/2714064.2660195)."""
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK64
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK64
    return z ^ (z >> 31)


def noise_key(seed: int, position: int) -> int:
    """Return what one token's noise is made from: 64 signed bits of the seed and the absolute position.

    Positions count the prompt's tokens, too.
    """
    key = _mix((seed + _GOLDEN) & _MASK64)
    return _as_int64(_mix((key + (position + 1) * _GOLDEN) & _MASK64))


def gumbel(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise [R, C] in float64 for keys [R] and token ids [R, C], both int64. It is finite."""
    z = keys[:, None] + (ids + 1) * _as_int64(_GOLDEN)
    z = (z ^ _shift_right(z, 30)) * _as_int64(_MIX_1)
    z = (z ^ _shift_right(z, 27)) * _as_int64(_MIX_2)
    uniform = (_shift_right(z ^ _shift_right(z, 31), 12).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))


def _shift_right(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right logically: torch's own shift copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _as_int64(value: int) -> int:
    """Return the same 64 bits as torch's int64 reads them."""
    return value - (1 << 64) if value >> 63 else value


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a step's scores, and how to sample its token.

    The token's `position` counts the prompt's tokens and the `generated` ones before it.
    """

    sampling: Sampling
    position: int
    generated: int
    counts: TokenCounts | None = None
    """Tokens that the sequence holds, if a penalty needs them."""


@dataclass(frozen=True, slots=True)
class _SampledRows:
    """The parameters of the rows that sample, as tensors [R] each."""

    rows: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor  # vocabulary size and more where off
    top_p: torch.Tensor
    min_p: torch.Tensor
    keys: torch.Tensor  # of the noise

    @classmethod
    def of(cls, rows: Sequence[Row], vocabulary: int, device: torch.device) -> _SampledRows | None:
        """Pick the rows that sample; None if there are none."""
        picked = [(index, row) for index, row in enumerate(rows) if row.sampling.temperature > 0]
        if not picked:
            return None
        values = [row.sampling for _, row in picked]
        return cls(
            torch.tensor([index for index, _ in picked], device=device),
            torch.tensor([s.temperature for s in values], device=device, dtype=torch.float32),
            torch.tensor([s.top_k or vocabulary for s in values], device=device),
            torch.tensor([s.top_p for s in values], device=device, dtype=torch.float64),
            torch.tensor([s.min_p for s in values], device=device, dtype=torch.float64),
            torch.tensor([noise_key(row.sampling.seed, row.position) for _, row in picked], device=device),
        )


class Sampler:
    """Stands in for `transformers`' ContinuousBatchingLogitsProcessorList; the library then takes the argmax.

    Owns the parameters of the step being prepared. The library calls `prepare_tensor_args` on the host, then
    `__call__` in the same step's forward pass: this holds without CUDA graphs, which would replay an older step's.
    """

    do_processing = True
    tensors_required = 0

    def __init__(self, guard: ScoreGuard) -> None:
        self._guard = guard
        self._states: list[RequestState] = []
        self._counts: dict[str, TokenCounts] = {}
        self.logprobs: dict[int, TokenLogprobs] = {}
        """Log probabilities of the last step, by the row that asked for them."""

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Do nothing: there are no defaults, every request carries its `Sampling`."""

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Do nothing: the server has checked the values."""

    def prepare_tensor_args(
        self, requests_in_batch: Sequence[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        """Note the parameters of the rows that get a token. They come first in the scores, in this order."""
        self._states = [future.state for future in requests_in_batch if future.has_new_token]
        return arg_storage

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        """Return scores [N, V] whose argmax over the rows of `prepare_tensor_args`, which come first, is their token.

        `scores` [N, V] float32 is changed in place.
        """
        self._guard.look(scores)
        before, self._counts = self._counts, {}
        rows = [self._row(state, before, scores) for state in self._states]
        wanted = [(index, row.sampling.logprobs) for index, row in enumerate(rows) if row.sampling.logprobs is not None]
        top = TopLogprobs(scores, wanted) if wanted else None
        choose(scores, rows)
        self.logprobs = top.of_choice(scores.argmax(dim=-1)) if top is not None else {}
        return scores

    def keep(self, rows: Sequence[int]) -> None:
        """Keep what the last step gave for some of its rows, which are numbered anew in this order."""
        self.logprobs = {new: self.logprobs[old] for new, old in enumerate(rows) if old in self.logprobs}

    def _row(self, state: RequestState, before: dict[str, TokenCounts], scores: torch.Tensor) -> Row:
        # Preemption and the death of an engine move generated tokens into `initial_tokens`.
        prompt_tokens: int = state.logit_processor_kwargs["prompt_tokens"]
        sampling: Sampling = state.logit_processor_kwargs["sampling"]
        counts = None
        if (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (1.0, 0.0, 0.0):
            counts = before.get(state.request_id) or TokenCounts.of_prompt(
                state.initial_tokens[:prompt_tokens], scores.shape[1], scores.device
            )
            counts.add(state.initial_tokens[prompt_tokens:] + state.generated_tokens)
            self._counts[state.request_id] = counts
        return Row(sampling, state.position_offset, state.position_offset - prompt_tokens, counts)


def choose(scores: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Change scores [N, V] in place, so that each of the first `len(rows)` rows has its next token as argmax."""
    penalize(scores, [Penalized(i, row.sampling, row.counts) for i, row in enumerate(rows) if row.counts is not None])
    bias(scores, [(i, token_id, amount) for i, row in enumerate(rows) for token_id, amount in row.sampling.logit_bias])
    held_back = [
        (index, token_id)
        for index, row in enumerate(rows)
        if row.generated < row.sampling.min_new_tokens
        for token_id in row.sampling.stop_token_ids
    ]
    if held_back:
        indices, token_ids = torch.tensor(held_back, device=scores.device).unbind(1)
        scores[indices, token_ids] = float("-inf")
    sampled = _SampledRows.of(rows, scores.shape[1], scores.device)
    if sampled is None:
        return scores
    tokens = _sample(scores.index_select(0, sampled.rows), sampled)
    scores[sampled.rows, tokens] = float("inf")
    return scores


def _sample(scores: torch.Tensor, rows: _SampledRows) -> torch.Tensor:
    """Return tokens [R] for scores [R, V], from the best candidates where they suffice, from ever more where not."""
    # Falling from 0, they can't overflow however cold it is.
    scaled = (scores - scores.amax(dim=-1, keepdim=True)) / rows.temperature[:, None]
    log_mass = torch.logsumexp(scaled, dim=-1, keepdim=True)
    tokens = torch.zeros(scores.shape[0], dtype=torch.int64, device=scores.device)
    left = torch.arange(scores.shape[0], device=scores.device)
    vocabulary = scores.shape[1]
    beaten = 0  # the first so many candidates have lost to what lies beyond them
    for count in (*(c for c in CANDIDATES if c < vocabulary), vocabulary):
        best, ids = torch.topk(scaled[left], count, dim=-1)
        log_probabilities = best.double() - log_mass[left]
        kept, is_known = _keep(log_probabilities, rows.top_k[left], rows.top_p[left], rows.min_p[left], vocabulary)
        keeps_all = (rows.top_k[left] >= vocabulary) & (rows.top_p[left] >= 1) & (rows.min_p[left] <= 0)
        kept[:, :beaten] &= ~keeps_all[:, None]
        sums = (log_probabilities + gumbel(rows.keys[left], ids)).masked_fill(~kept, float("-inf"))
        highest, column = sums.max(dim=-1)
        # The largest sum of all tokens beyond the candidates, whose noise takes an id past the vocabulary: no token's.
        rest = (1 - log_probabilities.exp().sum(dim=-1)).clamp(min=0)
        own_id = torch.full((len(left), 1), vocabulary + count, device=scores.device)
        beyond = rest.log() + gumbel(rows.keys[left], own_id).squeeze(1)
        settled = is_known & (~keeps_all | (highest >= beyond)) | (count == vocabulary)
        tokens[left[settled]] = ids[settled].gather(1, column[settled, None]).squeeze(1)
        left, beaten = left[~settled], count
        if not left.numel():
            break
    return tokens


def _keep(
    log_probabilities: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which candidates are kept [R, C], and whether C candidates were enough to tell [R].

    `log_probabilities` [R, C] fall from the first candidate to the last.

    With c[j] the mass of candidates 0..j, a whole vocabulary having mass 1:
      m1 = c[k - 1], or 1 where top_k is off           the mass that top_k keeps
      last = the first j: c[j] >= top_p * m1           the last candidate that top_p keeps of it
    min_p keeps those with at least so large a share of the best one's probability (https://arxiv.org/abs/2407.01082).
    """
    count = log_probabilities.shape[1]
    mass = log_probabilities.exp().cumsum(1)
    k_is_off, p_is_off = top_k >= vocabulary, top_p >= 1
    m1 = torch.where(k_is_off, 1.0, mass.gather(1, top_k.clamp(max=count)[:, None] - 1).squeeze(1))
    last = torch.searchsorted(mass, (top_p * m1)[:, None]).squeeze(1)
    ends = torch.where(p_is_off, top_k - 1, last.minimum(top_k - 1))
    kept = torch.arange(count, device=mass.device) <= ends[:, None]
    likely = log_probabilities >= log_probabilities[:, :1] + min_p.log()[:, None]
    knows_k = k_is_off | (top_k <= count)
    knows_p = p_is_off | (knows_k & (last < count))
    # Where min_p ends before the candidates do, it does not matter whether the others would have gone on.
    ends_here = (~likely).any(dim=1) & (p_is_off | knows_k)
    opens = (min_p <= 0) | ends_here
    return kept & likely, (knows_k & knows_p & opens) | ends_here
