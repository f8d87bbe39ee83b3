"""Each parameter's distribution against one made without our code, and mutants that the same comparison catches.

Everything is drawn with fixed seeds, so that a test passes or fails for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
import torch
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from container.engine.sequence import Sampling
from container.engine.worker import sampler as sampler_module
from container.engine.worker.penalties import TokenCounts
from container.engine.worker.sampler import Row, choose, gumbel, noise_key
from testing.container.sampler_draws import Sampler, p_value, tokens_of_one

DRAWS = 50_000
ALPHA = 1e-4
VOCABULARY = 50
LOGITS = 2.5 - (torch.arange(VOCABULARY) * 7 % VOCABULARY) / 10
"""Scores evenly spaced from 2.5, token 0's, to -2.4, in random order; token 43 is the second."""

# Both hold tokens with scores above and below 0; 4 is in both.
PROMPT = [15, 4, 4, 2]
OUTPUT = [1, 1, 1, 4, 5]

CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "temperature below 1": {"temperature": 0.6},
    "temperature above 1": {"temperature": 1.7},
    "top_k": {"top_k": 9},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "repetition_penalty above 1": {"repetition_penalty": 1.4},
    "repetition_penalty below 1": {"repetition_penalty": 0.7},
    "presence_penalty": {"presence_penalty": 0.8},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "penalties that reward": {"presence_penalty": -0.6, "frequency_penalty": -0.3},
    "logit_bias": {"logit_bias": ((0, -1.5), (7, 4.0), (30, 0.5))},
    "stop tokens held back": {"stop_token_ids": (0, 15), "min_new_tokens": len(OUTPUT) + 1},
    "stop tokens let go": {"stop_token_ids": (0, 15), "min_new_tokens": len(OUTPUT)},
    "temperature, then top_k, top_p and min_p": {"temperature": 1.7, "top_k": 20, "top_p": 0.8, "min_p": 0.3},
    "everything": {
        "temperature": 0.8,
        "top_k": 30,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": ((1, 0.8), (5, 2.0)),
        "stop_token_ids": (0, 7),
        "min_new_tokens": 20,
    },
}


def expected(
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: tuple[tuple[int, float], ...] = (),
    stop_token_ids: tuple[int, ...] = (),
    min_new_tokens: int = 0,
) -> torch.Tensor:
    """Probabilities [V] by transformers' processors in the order in which `generate` applies them, with OpenAI's
    penalties and bias (https://platform.openai.com/docs/api-reference/chat/create) between its first and the rest."""
    ids: Any = torch.tensor([PROMPT + OUTPUT])
    scores: Any = RepetitionPenaltyLogitsProcessor(repetition_penalty)(ids, LOGITS[None].double())
    for token_id, times in Counter(OUTPUT).items():
        scores[0, token_id] -= times * frequency_penalty + (times > 0) * presence_penalty
    for token_id, amount in logit_bias:
        scores[0, token_id] += amount
    if stop_token_ids:
        scores = MinNewTokensLengthLogitsProcessor(len(PROMPT), min_new_tokens, list(stop_token_ids))(ids, scores)
    scores = TemperatureLogitsWarper(temperature)(ids, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(ids, scores)
    return torch.softmax(scores[0], dim=-1)


def counts(prompt: list[int], output: list[int]) -> TokenCounts:
    made = TokenCounts.of_prompt(prompt, VOCABULARY, torch.device("cpu"))
    made.add(output)
    return made


def rows_of(case: str) -> list[Row]:
    parameters = {"temperature": 1.0} | CASES[case]
    counted = counts(PROMPT, OUTPUT) if any("penalty" in name for name in parameters) else None
    position, generated = len(PROMPT) + len(OUTPUT), len(OUTPUT)
    return [
        Row(Sampling(max_new_tokens=99, seed=seed, **parameters), position, generated, counted) for seed in range(DRAWS)
    ]


def p_of(case: str, sampler: Sampler = choose) -> float:
    return p_value(tokens_of_one(LOGITS, rows_of(case), sampler), expected(**CASES[case]))


def test_every_parameter_has_a_case() -> None:
    others = {"max_new_tokens", "seed", "logprobs"}
    assert {name for parameters in CASES.values() for name in parameters} == {*Sampling.__struct_fields__} - others


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_transformers_and_openai_rules(case: str) -> None:
    assert p_of(case) > ALPHA


# Mutants


def with_rows(change: Callable[[Row], Row]) -> Sampler:
    return lambda scores, rows: choose(scores, [change(row) for row in rows])


def with_parameters(change: Callable[[Sampling], dict[str, Any]]) -> Sampler:
    return with_rows(lambda row: replace(row, sampling=msgspec.structs.replace(row.sampling, **change(row.sampling))))


def with_counts(prompt: list[int], output: list[int]) -> Sampler:
    counted = counts(prompt, output)
    return with_rows(lambda row: replace(row, counts=counted))


def after(change: Callable[[Any, Sampling], torch.Tensor], **neutral: Any) -> Sampler:
    """Change the scores first, by the rows' common parameters, of which `neutral` turns some off."""
    rest = with_parameters(lambda _: neutral)
    return lambda scores, rows: rest(change(scores, rows[0].sampling), rows)


def with_part(name: str, part: Callable[..., Any]) -> Sampler:
    """Return the sampler with another part of that name."""

    def sampler(scores: torch.Tensor, rows: Any) -> torch.Tensor:
        with patch.object(sampler_module, name, part):
            return choose(scores, rows)

    return sampler


def keep_all_but_the_last(*args: Any, original: Callable[..., Any] = sampler_module._keep) -> Any:
    kept, is_known = original(*args)
    return kept & (kept.cumsum(1) < kept.sum(1, keepdim=True)), is_known


def noise_in_256_steps(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    uniform = torch.exp(-torch.exp(-gumbel(keys, ids)))
    return -torch.log(-torch.log(((uniform * 256).floor() + 0.5) / 256))


def normal_noise(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Noise that has the variance of Gumbel noise."""
    uniform = torch.exp(-torch.exp(-gumbel(keys, ids)))
    return torch.special.ndtri(uniform) * torch.pi / 6**0.5


def biased_twice(scores: torch.Tensor, s: Sampling) -> torch.Tensor:
    for token_id, amount in s.logit_bias:
        scores[:, token_id] += amount
    return scores


def penalized_for_a_second_time(scores: torch.Tensor, s: Sampling) -> torch.Tensor:
    scores[:, 1] /= s.repetition_penalty  # it is above 0
    return scores


def divided_even_below_0(scores: torch.Tensor, s: Sampling) -> torch.Tensor:
    scores[:, list({*PROMPT, *OUTPUT})] /= s.repetition_penalty
    return scores


MUTANTS: dict[str, tuple[str, Sampler]] = {
    "temperature a twentieth too high": (
        "temperature below 1",
        with_parameters(lambda s: {"temperature": s.temperature * 1.05}),
    ),
    "temperature a twentieth too low": (
        "temperature above 1",
        with_parameters(lambda s: {"temperature": s.temperature * 0.95}),
    ),
    "one more than top_k": ("top_k", with_parameters(lambda s: {"top_k": s.top_k + 1})),
    "one less than top_k": ("top_k", with_parameters(lambda s: {"top_k": s.top_k - 1})),
    "top_p without the token that reaches it": ("top_p", with_part("_keep", keep_all_but_the_last)),
    "top_p before temperature": (
        "temperature, then top_k, top_p and min_p",
        after(lambda scores, s: TopPLogitsWarper(s.top_p)(None, scores), top_p=1.0),
    ),
    "top_p of what top_k has not cut": (
        "temperature, then top_k, top_p and min_p",
        with_parameters(lambda s: {"top_k": 0}),
    ),
    "min_p of the whole mass instead of the best": (
        "min_p",
        after(lambda scores, s: scores.masked_fill(scores.softmax(-1) < s.min_p, float("-inf")), min_p=0.0),
    ),
    "min_p before temperature": (
        "temperature, then top_k, top_p and min_p",
        after(lambda scores, s: MinPLogitsWarper(s.min_p)(None, scores), min_p=0.0),
    ),
    "repetition_penalty of the output only": ("repetition_penalty above 1", with_counts(OUTPUT, OUTPUT)),
    "repetition_penalty that divides what is below 0": (
        "repetition_penalty above 1",
        after(divided_even_below_0, repetition_penalty=1.0),
    ),
    "repetition_penalty once per occurrence": ("repetition_penalty below 1", after(penalized_for_a_second_time)),
    "presence_penalty of the prompt too": ("presence_penalty", with_counts(PROMPT, PROMPT + OUTPUT)),
    "presence_penalty once per occurrence": (
        "presence_penalty",
        with_parameters(lambda s: {"presence_penalty": 0.0, "frequency_penalty": s.presence_penalty}),
    ),
    "frequency_penalty of the prompt too": ("frequency_penalty", with_counts(PROMPT, PROMPT + OUTPUT)),
    "frequency_penalty once a token": ("frequency_penalty", with_counts(PROMPT, [*{*OUTPUT}])),
    "logit_bias twice": ("logit_bias", after(biased_twice)),
    "logit_bias before the repetition_penalty": ("everything", after(biased_twice, logit_bias=())),
    "stop tokens let go a token early": (
        "stop tokens held back",
        with_rows(lambda row: replace(row, generated=row.generated + 1)),
    ),
    "stop tokens held back a token longer": (
        "stop tokens let go",
        with_rows(lambda row: replace(row, generated=row.generated - 1)),
    ),
    "noise in 256 steps": ("nothing", with_part("gumbel", noise_in_256_steps)),
    "normal noise": ("nothing", with_part("gumbel", normal_noise)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_slightly_wrong_sampler_is_caught(mutant: str) -> None:
    assert p_of(*MUTANTS[mutant]) < ALPHA


# Independence

FEW = torch.linspace(1.0, -1.0, 12)
"""Scores of so few tokens that every pair is drawn often enough."""


def few(cells: list[tuple[int, int]], sampler: Sampler = choose) -> list[int]:
    """Return the tokens for pairs of seed and position."""
    rows = [Row(Sampling(max_new_tokens=99, temperature=1.0, seed=seed), position, 0) for seed, position in cells]
    return tokens_of_one(FEW, rows, sampler)


def p_of_pairs(first: list[int], second: list[int]) -> float:
    """Tell whether each of both follows the softmax, independently of the other."""
    probabilities = torch.softmax(FEW.double(), 0)
    pairs = [a * len(FEW) + b for a, b in zip(first, second, strict=True)]
    return p_value(pairs, torch.outer(probabilities, probabilities).flatten())


def positions_of_one_seed(sampler: Sampler = choose) -> float:
    drawn = few([(7, position) for position in range(DRAWS)], sampler)
    return p_of_pairs(drawn[::2], drawn[1::2])


def consecutive_positions(sampler: Sampler = choose) -> float:
    return p_of_pairs(*(few([(seed, place) for seed in range(DRAWS)], sampler) for place in (20, 21)))


def consecutive_seeds(sampler: Sampler = choose) -> float:
    drawn = few([(seed, 20) for seed in range(DRAWS)], sampler)
    return p_of_pairs(drawn[::2], drawn[1::2])


def next_seed_at_the_position_before(sampler: Sampler = choose) -> float:
    return p_of_pairs(*(few([(seed + n, 21 - n) for seed in range(DRAWS)], sampler) for n in (0, 1)))


INDEPENDENCE = [positions_of_one_seed, consecutive_positions, consecutive_seeds, next_seed_at_the_position_before]


@pytest.mark.parametrize("p_of_neighbours", INDEPENDENCE, ids=lambda test: test.__name__)
def test_neighbouring_draws_know_nothing_of_each_other(p_of_neighbours: Callable[[], float]) -> None:
    assert p_of_neighbours() > ALPHA


DEPENDENT: dict[str, tuple[Callable[[Sampler], float], Callable[[int, int], int]]] = {
    "two positions share their noise": (consecutive_positions, lambda seed, position: noise_key(seed, position // 2)),
    "two positions of one seed do": (positions_of_one_seed, lambda seed, position: noise_key(seed, position // 2)),
    "two seeds share their noise": (consecutive_seeds, lambda seed, position: noise_key(seed // 2, position)),
    "seeds and positions add up": (next_seed_at_the_position_before, lambda seed, place: noise_key(seed + place, 0)),
    # A token's noise is a hash of the key plus its own id's multiple of the same number: the next seed's are shifted.
    "seeds and token ids add up": (
        consecutive_seeds,
        lambda seed, _: sampler_module._as_int64(seed * sampler_module._GOLDEN & sampler_module._MASK64),
    ),
}


@pytest.mark.parametrize("mutant", DEPENDENT)
def test_noise_that_is_not_independent_is_caught(mutant: str) -> None:
    p_of_neighbours, key = DEPENDENT[mutant]
    assert p_of_neighbours(with_part("noise_key", key)) < ALPHA
