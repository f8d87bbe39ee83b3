from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from container.engine.sampling import _GOLDEN, _MASK64, CANDIDATES, Row, _draw, _mix, choose, uniform
from container.engine.sequence import Sampling

VOCABULARY = 1000


def row(position: int = 20, generated: int = 5, **parameters: Any) -> Row:
    return Row(Sampling(max_new_tokens=99, **parameters), position, generated)


def scores(rows: int = 1, vocabulary: int = VOCABULARY, *, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(7)) * spread


def tokens(scores: torch.Tensor, rows: list[Row]) -> list[int]:
    chosen = choose(scores.clone(), rows).argmax(-1)[: len(rows)].tolist()
    return [int(token) for token in chosen]


def draws(logits: torch.Tensor, count: int, **parameters: Any) -> list[int]:
    """So many tokens for the same scores [V], with the seeds 0, 1, 2, ..."""
    return tokens(logits.expand(count, -1), [row(seed=seed, **parameters) for seed in range(count)])


def support(logits: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> set[int]:
    """What transformers' warpers leave of scores [V], in the order in which it applies them."""
    kept = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        kept = TopKLogitsWarper(top_k)(None, kept)
    if top_p < 1:
        kept = TopPLogitsWarper(top_p)(None, kept)
    return set(torch.isfinite(kept[0]).nonzero().flatten().tolist())


def p_value(drawn: list[int], probabilities: torch.Tensor) -> float:
    """Pearson's chi-square test; tokens expected fewer than five times share a cell."""
    counts = Counter(drawn)
    observed = torch.tensor([counts[token] for token in range(len(probabilities))], dtype=torch.float64)
    expected = probabilities.double() * len(drawn)
    rare = expected < 5
    cells = [torch.cat([x[~rare], x[rare].sum()[None]]) for x in (observed, expected)]
    chi_square = ((cells[0] - cells[1]) ** 2 / cells[1].clamp(min=1e-9)).sum()
    freedom = len(cells[0]) - 1
    return float(torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), chi_square / 2))


def test_a_uniform_number_lies_in_0_to_1_and_is_as_often_low_as_high() -> None:
    numbers = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert 0 <= min(numbers) < 0.001
    assert 0.999 < max(numbers) < 1
    assert len(set(numbers)) == len(numbers)
    deciles = Counter(int(10 * number) for number in numbers)
    assert p_value(list(deciles.elements()), torch.full((10,), 0.1)) > 1e-4


def test_the_mixing_is_splitmix64() -> None:
    """The first outputs for the seed 1234567, as published with other implementations of it."""
    assert [_mix(1234567 + n * _GOLDEN & _MASK64) for n in (1, 2)] == [6457827717110365317, 3203168211198807973]


@pytest.mark.parametrize(
    ("seed", "position", "number"),
    [
        (0, 0, 0.6524484863740322),
        (0, 1, 0.7012121095215252),
        (1, 0, 0.36818951565166946),
        (2**64 - 1, 4095, 0.25890696956169235),
    ],
)
def test_the_uniform_numbers_are_frozen(seed: int, position: int, number: float) -> None:
    assert uniform(seed, position) == number


def test_the_tokens_of_a_seed_are_frozen() -> None:
    """Whoever changes them changes what a seed gives: don't, or say so in the changelog."""
    logits = (torch.arange(VOCABULARY) * 7919 % VOCABULARY) / 100
    rows = [
        row(seed=1, temperature=1.0),
        row(seed=1, temperature=1.0, position=21),
        row(seed=2, temperature=4.0),
        row(seed=3, temperature=1.5, top_k=40),
        row(seed=4, temperature=1.0, top_p=0.5),
        row(seed=2**64 - 1, temperature=0.8, top_k=100, top_p=0.9),
    ]
    assert tokens(logits.expand(len(rows), -1), rows) == [495, 778, 636, 630, 62, 198]


@pytest.mark.parametrize("place", [0, 13, 31])
def test_a_seed_and_a_position_give_the_same_token_alone_and_among_31_others(place: int) -> None:
    logits = scores(32)
    rows = [row(seed=seed, position=seed * 3, temperature=0.5 + seed / 20, top_k=seed, top_p=0.9) for seed in range(32)]
    assert tokens(logits[place : place + 1], [rows[place]]) == [tokens(logits, rows)[place]]


def test_another_seed_and_another_position_give_other_tokens() -> None:
    flat = torch.zeros(VOCABULARY)
    by_seed = draws(flat, 50, temperature=1.0)
    by_position = tokens(flat.expand(50, -1), [row(position=n, temperature=1.0) for n in range(50)])
    assert len(set(by_seed)) > 40
    assert len(set(by_position)) > 40


def test_greedy_rows_are_left_bit_for_bit_among_rows_that_sample() -> None:
    before = scores(6)
    after = choose(before.clone(), [row(temperature=n % 2, seed=n) for n in range(6)])
    assert torch.equal(after[::2], before[::2])
    assert not torch.equal(after[1::2], before[1::2])


def test_rows_that_get_no_token_are_left_alone() -> None:
    before = scores(4)
    after = choose(before.clone(), [row(temperature=1.0, stop_token_ids=(1,), min_new_tokens=9)])
    assert torch.equal(after[1:], before[1:])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_tokens_are_held_back_until_the_minimum_is_generated(temperature: float) -> None:
    sure = torch.zeros(1, VOCABULARY)
    sure[0, 7] = 50.0
    held = {"stop_token_ids": (7, 9), "min_new_tokens": 3, "temperature": temperature}
    assert tokens(sure, [row(generated=2, **held)]) != [7]
    assert tokens(sure, [row(generated=3, **held)]) == [7]


def test_holding_back_touches_the_stop_tokens_of_its_own_row_only() -> None:
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
    ],
    ids=str,
)
def test_what_is_drawn_is_what_transformers_warpers_leave(parameters: dict[str, Any]) -> None:
    logits = scores(spread=1.5)[0]
    kept = support(logits, **parameters)
    drawn = set(draws(logits, 4000, **({"temperature": 1.0} | parameters)))
    assert drawn <= kept
    if len(kept) <= 20:
        assert drawn == kept


@pytest.mark.parametrize("top_k", [VOCABULARY, VOCABULARY + 1, 2**31 - 1])
def test_a_top_k_of_the_whole_vocabulary_is_off(top_k: int) -> None:
    logits = scores()[0]
    assert draws(logits, 200, temperature=1.0, top_k=top_k) == draws(logits, 200, temperature=1.0)


@pytest.mark.parametrize("spread", [0.5, 3.0], ids=["most draws fall back", "none does"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_follow_the_softmax_of_the_scores(temperature: float, spread: float) -> None:
    logits = scores(vocabulary=400, spread=spread)[0]
    drawn = draws(logits, 10_000, temperature=temperature)
    assert p_value(drawn, torch.softmax(logits / temperature, 0)) > 1e-4


def test_draws_under_top_k_and_top_p_follow_the_softmax_of_what_is_kept() -> None:
    logits = scores(vocabulary=400, spread=1.0)[0]
    parameters: dict[str, Any] = {"temperature": 0.9, "top_k": 30, "top_p": 0.7}
    kept = torch.full_like(logits, float("-inf"))
    kept[list(support(logits, **parameters))] = 0.0
    drawn = draws(logits, 10_000, **parameters)
    assert p_value(drawn, torch.softmax(logits / 0.9 + kept, 0)) > 1e-4


def test_the_chi_square_test_catches_a_sampler_that_is_a_little_off() -> None:
    logits = scores(vocabulary=400)[0]
    drawn = draws(logits, 10_000, temperature=1.0)
    assert p_value(drawn, torch.softmax(logits / 1.1, 0)) < 1e-4
    assert p_value([*drawn[:9700], *[0] * 300], torch.softmax(logits, 0)) < 1e-4


def test_tokens_beyond_the_first_and_the_second_candidates_are_drawn_too() -> None:
    """Of a flat distribution, most draws need the whole vocabulary."""
    vocabulary = 2 * CANDIDATES[1]
    drawn = draws(torch.zeros(vocabulary), 64, temperature=1.0)
    assert len(set(drawn)) > 60
    logits = -torch.arange(vocabulary) / vocabulary
    ranks = sorted(draws(logits, 200, temperature=1.0))
    assert ranks[0] < CANDIDATES[0] * 8 and ranks[-1] > CANDIDATES[1]


def test_the_candidates_looked_at_change_nothing_but_the_time_it_takes() -> None:
    """A row's draw from the first candidates, where they suffice, is its draw from all."""
    logits = scores(64, spread=2.0)
    falling, ids = (torch.softmax(logits, -1).double()).sort(descending=True)
    numbers = torch.tensor([uniform(seed, 20) for seed in range(64)], dtype=torch.float64)
    off = torch.full((64,), VOCABULARY), torch.ones(64, dtype=torch.float64)
    place, _ = _draw(falling, *off, numbers, vocabulary=VOCABULARY)
    expected = ids.gather(1, place[:, None]).squeeze(1).tolist()
    assert tokens(logits, [row(seed=seed, temperature=1.0) for seed in range(64)]) == expected


@pytest.mark.parametrize("number", [1 - 2**-53, 1 - 2**-30, 0.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(VOCABULARY, 1.0), (5, 1.0), (VOCABULARY, 0.999), (5, 0.9)])
def test_the_first_and_last_numbers_draw_tokens_that_have_a_probability(
    number: float, top_k: int, top_p: float
) -> None:
    logits = scores(spread=60.0)
    falling = torch.softmax(logits, -1).double().sort(descending=True).values
    as_row = torch.tensor([top_k]), torch.tensor([top_p], dtype=torch.float64), torch.tensor([number]).double()
    ((place,), (settled,)) = _draw(falling, *as_row, vocabulary=VOCABULARY)
    assert settled
    assert falling[0, place] > 0
    assert number > 0 or place == 0


@pytest.mark.parametrize("temperature", [1e-5, 1e-38, 1e30])
def test_extreme_temperatures_are_greedy_or_flat(temperature: float) -> None:
    logits = scores(spread=30.0)[0]
    drawn = draws(logits, 50, temperature=temperature)
    assert set(drawn) == {int(logits.argmax())} if temperature < 1 else len(set(drawn)) > 40


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_models_scores_break_no_other_row(value: float) -> None:
    logits = scores(2)
    good = tokens(logits, [row(), row(temperature=1.0, top_k=5, top_p=0.9)])[1]
    logits[0, 3] = value
    sampled = row(temperature=1.0, top_k=5, top_p=0.9)
    chosen = tokens(logits, [sampled, sampled])
    assert chosen[1] == good
    assert 0 <= chosen[0] < VOCABULARY
