"""Models that keep a state per sequence: exact in batches, in pieces, after preemptions, and behind given tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from container.engine.worker.states import SequenceStates
from testing.container.hand_turned_engine import Engine
from testing.exactness import Reference
from testing.model_zoo import tiny_checkpoint, zoo_prompts

AssertExact = Callable[..., None]

KINDS = {
    "qwen3_5_text": "delta rule",
    "lfm2": "short convolution",
    "falcon_h1": "Mamba-2 beside attention in each layer",
    "jamba": "Mamba-1, which takes later pieces token by token",
    "zamba2": "Mamba-2 that decodes otherwise than it prefills",
    "mamba2": "no attention at all",
    "deepseek_v32": "indexer",
}
PROMPTS = zoo_prompts(5, (3, 41, 64, 90))
TIGHT = zoo_prompts(7, (24,) * 5)
NEW_TOKENS = 16


def engine(directory: str, **settings: int) -> Engine:
    return Engine(directory, max_batch_tokens=40, max_model_len=512, unverified_models=True, **settings)


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(AutoModelForCausalLM, request.param, tmp_path_factory.mktemp(request.param))


def test_state_survives_pieces_preemption_and_resume(checkpoint: str, assert_exact: AssertExact) -> None:
    reference = Reference(checkpoint, eos_token_id=-1)
    expected = reference.generate(PROMPTS, new_tokens=NEW_TOKENS)
    batch = engine(checkpoint)
    assert_exact(reference, PROMPTS, batch.generate(PROMPTS, max_new_tokens=NEW_TOKENS), expected)
    # As after a death: another engine goes on behind the tokens so far.
    halves = [tokens[: NEW_TOKENS // 2] for tokens in expected]
    for id, (prompt, half) in enumerate(zip(PROMPTS, halves, strict=True), 100):
        batch.submit(id, prompt, output_ids=half, max_new_tokens=NEW_TOKENS)
    rest = batch.finish(range(100, 100 + len(PROMPTS)))
    assert_exact(reference, PROMPTS, [half + more for half, more in zip(halves, rest, strict=True)], expected)
    batch.assert_nothing_is_held()
    assert len(batch.batch._states) == 0
    tight = engine(checkpoint, kv_cache_tokens=96)
    found = tight.generate(TIGHT, max_new_tokens=NEW_TOKENS)
    assert_exact(reference, TIGHT, found, reference.generate(TIGHT, new_tokens=NEW_TOKENS))
    assert len(tight.batch._states) == 0


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(AutoModelForCausalLM, "qwen3_5_text", tmp_path_factory.mktemp("hybrid"))


def test_tight_cache_preempts_hybrid_sequences(hybrid: str) -> None:
    tight = engine(hybrid, kv_cache_tokens=96)
    tight.generate(TIGHT, max_new_tokens=NEW_TOKENS)
    assert tight.preemptions > 0


def test_cancelled_sequences_leave_no_state(hybrid: str, assert_exact: AssertExact) -> None:
    reference, batch = Reference(hybrid, eos_token_id=-1), engine(hybrid)
    for id, prompt in enumerate(PROMPTS):
        batch.submit(id, prompt, max_new_tokens=NEW_TOKENS)
    batch.turn_until(lambda: len(batch.output.get(0, [])) >= 4)
    assert len(batch.batch._states) == len(PROMPTS)
    for id in (0, 2):  # one that decodes, one whose prompt may be in pieces still
        batch.cancel(id)
    batch.turn()
    assert len(batch.batch._states) == len(PROMPTS) - 2
    expected = reference.generate([PROMPTS[1], PROMPTS[3]], new_tokens=NEW_TOKENS)
    assert_exact(reference, [PROMPTS[1], PROMPTS[3]], batch.finish([1, 3]), expected)
    assert len(batch.batch._states) == 0


def test_equal_prompts_share_no_pages_with_states(hybrid: str, assert_exact: AssertExact) -> None:
    reference, batch = Reference(hybrid, eos_token_id=-1), engine(hybrid)
    twice = [PROMPTS[3], PROMPTS[3] + [7, 8]]
    expected = reference.generate(twice, new_tokens=8)
    for _ in range(2):
        assert_exact(reference, twice, batch.generate(twice, max_new_tokens=8), expected)


def test_states_count_in_the_layout(hybrid: str, tmp_path: Path) -> None:
    layout = engine(hybrid).batch._layout
    assert len(layout.states) == 2 and not layout.shares_prefixes
    # Two layers: convolution [128, 4] and state [4, 16, 16], both in float32.
    assert layout.state_bytes == 2 * 4 * (128 * 4 + 4 * 16 * 16)


def test_second_batch_of_a_model_keeps_its_own_states(hybrid: str, assert_exact: AssertExact) -> None:
    reference, first = Reference(hybrid, eos_token_id=-1), engine(hybrid)
    second = SequenceStates(first.batch.model._model, first.batch._layout)
    expected = reference.generate(PROMPTS, new_tokens=NEW_TOKENS)
    first.batch._states = second  # as the batch that was made last, whose steps these are
    assert_exact(reference, PROMPTS, first.generate(PROMPTS, max_new_tokens=NEW_TOKENS), expected)
    assert len(second) == 0
