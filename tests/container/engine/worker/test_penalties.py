from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from container.engine.sequence import Sampling
from container.engine.worker.penalties import TokenCounts, bias
from container.engine.worker.sampler import Row, choose

VOCABULARY = 50
PROMPT, OUTPUT = [3, 4, 4], [5, 6, 6, 6]


def counted() -> TokenCounts:
    counts = TokenCounts.of_prompt(PROMPT, VOCABULARY, torch.device("cpu"))
    counts.add(OUTPUT[:1])
    counts.add(OUTPUT)
    return counts


def changed(before: torch.Tensor, **parameters: Any) -> torch.Tensor:
    row = Row(Sampling(max_new_tokens=9, **parameters), position=7, generated=4, counts=counted())
    return choose(before.clone(), [row])


def scores() -> torch.Tensor:
    return torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    before = scores()
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([PROMPT + OUTPUT]), before[:1].clone())
    torch.testing.assert_close(changed(before, repetition_penalty=penalty)[:1], expected)


def test_frequency_penalty_counts_and_presence_penalty_notes() -> None:
    before = scores()
    after = changed(before, frequency_penalty=0.5, presence_penalty=0.25)
    expected = before[0].clone()
    expected[5] -= 0.5 + 0.25
    expected[6] -= 3 * 0.5 + 0.25
    torch.testing.assert_close(after[0], expected)


def test_other_rows_are_left_bit_for_bit() -> None:
    before = scores()
    after = changed(before, repetition_penalty=2.0, frequency_penalty=1.0, logit_bias=((9, 5.0),))
    assert torch.equal(after[1], before[1])


def test_bias_changes_own_row_and_tokens_only() -> None:
    before = scores()
    after = before.clone()
    bias(after, [(0, 9, 100.0), (1, 2, -100.0)])
    assert after[0].argmax() == 9 and after[1].argmin() == 2
    assert float(after[0, 9] - before[0, 9]) == pytest.approx(100.0, rel=1e-4)


def test_a_penalized_row_may_sample_too() -> None:
    before = torch.zeros(1, VOCABULARY)
    row = Sampling(max_new_tokens=9, temperature=1.0, frequency_penalty=2.0, logit_bias=((6, 100.0), (5, -100.0)))
    drawn = {
        int(choose(before.clone(), [Row(row, position=n, generated=4, counts=counted())]).argmax()) for n in range(40)
    }
    assert drawn == {6}


def test_smallest_repetition_penalty_gives_finite_scores() -> None:
    before = scores().abs() + 1
    after = changed(before, repetition_penalty=5e-324)
    assert bool(torch.isfinite(after).all())
    seen = sorted({*PROMPT, *OUTPUT})
    assert int(after[0].argmax()) == seen[int(before[0, seen].argmax())]
