from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from container.engine.worker.sampler import _GOLDEN, _MASK64, CANDIDATES, _mix, choose, gumbel, noise_key
from testing.container.sampler_draws import draw_tokens, p_value, row, tokens

VOCABULARY = 1000


def scores(rows: int = 1, vocabulary: int = VOCABULARY, *, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(7)) * spread


def support(
    logits: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> set[int]:
    """Return what transformers' warpers leave of scores [V], in the order in which it applies them."""
    kept = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        kept = TopKLogitsWarper(top_k)(None, kept)
    if top_p < 1:
        kept = TopPLogitsWarper(top_p)(None, kept)
    if min_p:
        kept = MinPLogitsWarper(min_p)(None, kept)
    return set(torch.isfinite(kept[0]).nonzero().flatten().tolist())


def noise(seeds: list[int], positions: list[int], ids: list[int]) -> torch.Tensor:
    keys = torch.tensor([noise_key(seed, position) for seed in seeds for position in positions])
    return gumbel(keys, torch.tensor(ids).expand(len(keys), -1))


def test_noise_is_standard_gumbel() -> None:
    numbers = torch.exp(-torch.exp(-noise(list(range(20)), list(range(20)), list(range(25))))).flatten().tolist()
    assert 0 <= min(numbers) < 0.001 and 0.999 < max(numbers) < 1
    assert len(set(numbers)) == len(numbers)
    deciles = Counter(int(10 * number) for number in numbers)
    assert p_value(list(deciles.elements()), torch.full((10,), 0.1)) > 1e-4


def test_the_mixing_is_splitmix64() -> None:
    """The first outputs for the seed 1234567, as published with other implementations of it."""
    assert [_mix(1234567 + n * _GOLDEN & _MASK64) for n in (1, 2)] == [6457827717110365317, 3203168211198807973]


@pytest.mark.parametrize(
    ("seed", "position", "token_id", "number"),
    [
        (0, 0, 0, -0.6807578025137786),
        (0, 1, 0, -0.526909935923932),
        (1, 0, 49151, 1.0276914801381312),
        (2**64 - 1, 4095, 7, 2.3426146550897795),
    ],
)
def test_the_noise_is_frozen(seed: int, position: int, token_id: int, number: float) -> None:
    assert float(noise([seed], [position], [token_id])) == pytest.approx(number, rel=1e-12)


def test_the_tokens_of_a_seed_are_frozen() -> None:
    """A change to them changes what a seed gives: don't, or say so in the changelog."""
    logits = (torch.arange(VOCABULARY) * 7919 % VOCABULARY) / 100
    rows = [
        row(seed=1, temperature=1.0),
        row(seed=1, temperature=1.0, position=21),
        row(seed=2, temperature=4.0),
        row(seed=3, temperature=1.5, top_k=40),
        row(seed=4, temperature=1.0, top_p=0.5),
        row(seed=2**64 - 1, temperature=0.8, top_k=100, top_p=0.9),
    ]
    assert tokens(logits.expand(len(rows), -1), rows) == [866, 458, 680, 457, 766, 149]


@pytest.mark.parametrize("place", [0, 13, 31])
def test_seeded_token_same_alone_and_in_batch(place: int) -> None:
    logits = scores(32)
    rows = [row(seed=seed, position=seed * 3, temperature=0.5 + seed / 20, top_k=seed, top_p=0.9) for seed in range(32)]
    assert tokens(logits[place : place + 1], [rows[place]]) == [tokens(logits, rows)[place]]


def test_seed_and_position_each_change_token() -> None:
    flat = torch.zeros(VOCABULARY)
    by_seed = draw_tokens(flat, 50, temperature=1.0)
    by_position = tokens(flat.expand(50, -1), [row(position=n, temperature=1.0) for n in range(50)])
    assert len(set(by_seed)) > 40
    assert len(set(by_position)) > 40


def test_greedy_rows_stay_unchanged_among_sampled_ones() -> None:
    before = scores(6)
    after = choose(before.clone(), [row(temperature=n % 2, seed=n) for n in range(6)])
    assert torch.equal(after[::2], before[::2])
    assert not torch.equal(after[1::2], before[1::2])


def test_rows_without_token_stay_unchanged() -> None:
    before = scores(4)
    after = choose(before.clone(), [row(temperature=1.0, stop_token_ids=(1,), min_new_tokens=9)])
    assert torch.equal(after[1:], before[1:])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_tokens_wait_for_the_minimum(temperature: float) -> None:
    sure = torch.zeros(1, VOCABULARY)
    sure[0, 7] = 50.0
    held = {"stop_token_ids": (7, 9), "min_new_tokens": 3, "temperature": temperature}
    assert tokens(sure, [row(generated=2, **held)]) != [7]
    assert tokens(sure, [row(generated=3, **held)]) == [7]


def test_minimum_holds_back_own_stop_tokens_only() -> None:
    before = scores(2)
    after = choose(before.clone(), [row(generated=0, stop_token_ids=(7,), min_new_tokens=1), row()])
    assert after[0, 7] == float("-inf")
    before[0, 7] = float("-inf")
    assert torch.equal(after, before)


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 1},
        {"top_k": 7},
        {"top_p": 0.5},
        {"top_p": 0.01},
        {"top_k": 20, "top_p": 0.8, "temperature": 1.3},
        {"top_k": 3, "top_p": 0.99, "temperature": 0.6},
        {"min_p": 0.3},
        {"min_p": 0.05, "top_k": 8, "temperature": 1.2},
        {"min_p": 0.2, "top_p": 0.6},
    ],
    ids=str,
)
def test_draws_follow_transformers_warpers(parameters: dict[str, Any]) -> None:
    logits = scores(spread=1.5)[0]
    kept = support(logits, **parameters)
    drawn = set(draw_tokens(logits, 4000, **({"temperature": 1.0} | parameters)))
    assert drawn <= kept
    if len(kept) <= 20:
        assert drawn == kept


@pytest.mark.parametrize(
    "parameters", [{"top_k": 600}, {"top_p": 0.6}, {"top_k": 800, "top_p": 0.75}, {"min_p": 0.99403}], ids=str
)
def test_wide_choice_is_not_cut_to_candidates(parameters: dict[str, Any]) -> None:
    logits = -torch.arange(VOCABULARY) / 1e5
    drawn = draw_tokens(logits, 2000, temperature=1.0, **parameters)
    kept = support(logits, **parameters)
    assert CANDIDATES[0] < 590 < max(drawn) <= max(kept) < 610


@pytest.mark.parametrize("top_k", [VOCABULARY, VOCABULARY + 1, 2**31 - 1])
def test_top_k_of_whole_vocabulary_is_off(top_k: int) -> None:
    logits = scores()[0]
    assert draw_tokens(logits, 200, temperature=1.0, top_k=top_k) == draw_tokens(logits, 200, temperature=1.0)


@pytest.mark.parametrize("spread", [0.5, 3.0], ids=["most draws fall back", "none does"])
def test_draws_beyond_first_candidates_follow_softmax(spread: float) -> None:
    logits = scores(vocabulary=400, spread=spread)[0]
    assert p_value(draw_tokens(logits, 10_000, temperature=1.0), torch.softmax(logits, 0)) > 1e-4


def test_tokens_beyond_all_candidates_are_drawn() -> None:
    """Most draws from a flat distribution need the whole vocabulary."""
    vocabulary = 2 * CANDIDATES[1]
    drawn = draw_tokens(torch.zeros(vocabulary), 64, temperature=1.0)
    assert len(set(drawn)) > 60
    logits = -torch.arange(vocabulary) / vocabulary
    ranks = sorted(draw_tokens(logits, 200, temperature=1.0))
    assert ranks[0] < CANDIDATES[0] * 8 and ranks[-1] > CANDIDATES[1]


def test_candidates_and_rest_each_have_their_share() -> None:
    vocabulary, ends = 20_000, torch.tensor([*CANDIDATES, 20_000])
    logits = -torch.arange(vocabulary) / 5000
    drawn = torch.bucketize(torch.tensor(draw_tokens(logits, 600, temperature=1.0)), ends, right=True).tolist()
    mass = torch.softmax(logits.double(), 0).cumsum(0)[ends - 1]
    assert p_value(drawn, torch.diff(mass, prepend=torch.zeros(1))) > 1e-4


@pytest.mark.parametrize("spread", [0.1, 3.0], ids=["flat", "peaked"])
def test_rounding_in_the_scores_changes_no_token(spread: float) -> None:
    """Another batch changes the logits by 5e-5 at most. It must not show, even where hundreds of tokens nearly tie."""
    logits = scores(vocabulary=20_000, spread=spread).expand(300, -1)
    rounding = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)) * 1e-5
    rows = [row(seed=seed, temperature=1.0) for seed in range(300)]
    assert tokens(logits, rows) == tokens(logits + rounding, rows)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.999), (5, 0.9)])
def test_no_token_without_a_probability_is_drawn(top_k: int, top_p: float) -> None:
    logits = scores(spread=3.0)[0]
    logits[::2] = float("-inf")
    drawn = draw_tokens(logits, 2000, temperature=2.0, top_k=top_k, top_p=top_p)
    assert all(token % 2 for token in drawn)


@pytest.mark.parametrize("temperature", [1e-5, 1e-38, 1e30])
def test_extreme_temperatures_are_greedy_or_flat(temperature: float) -> None:
    logits = scores(spread=30.0)[0]
    drawn = draw_tokens(logits, 50, temperature=temperature)
    assert set(drawn) == {int(logits.argmax())} if temperature < 1 else len(set(drawn)) > 40


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_scores_break_no_other_row(value: float) -> None:
    logits = scores(2)
    good = tokens(logits, [row(), row(temperature=1.0, top_k=5, top_p=0.9)])[1]
    logits[0, 3] = value
    sampled = row(temperature=1.0, top_k=5, top_p=0.9)
    chosen = tokens(logits, [sampled, sampled])
    assert chosen[1] == good
    assert 0 <= chosen[0] < VOCABULARY
