from __future__ import annotations

import hashlib
import inspect
import queue
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.generation.continuous_batching import (
    cache,
    cache_allocators,
    continuous_api,
    input_outputs,
    model_runner,
    offloading_manager,
    requests,
    scheduler,
)
from transformers.generation.continuous_batching.cache_allocators.cache_allocator import BlockLedger

from container.engine.worker import model
from container.engine.worker.batch import PAGE_TOKENS
from testing.container.hand_turned_engine import Engine
from testing.exactness import Reference
from testing.tiny_models import FAMILIES, VOCABULARY, WINDOW, TinyModel, random_prompt

AssertExact = Callable[..., None]


BATCH_TOKENS = 48
# Their lengths lie around the window of the sliding layers, the pages of the cache and the tokens of a step. The last
# two share a prefix of two pages.
PREFIX = random_prompt(2 * PAGE_TOKENS + 5)
PROMPTS = [
    *(random_prompt(n) for n in (1, 2, WINDOW - 1, WINDOW, WINDOW + 1, PAGE_TOKENS - 1, PAGE_TOKENS, PAGE_TOKENS + 1)),
    *(random_prompt(n) for n in (2 * PAGE_TOKENS, 2 * BATCH_TOKENS + 4)),
    PREFIX + random_prompt(3),
    PREFIX + random_prompt(8),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_equals_single_runs_and_generate(tiny: TinyModel, assert_exact: AssertExact, family: str) -> None:
    reference = Reference(tiny(family))
    expected = reference.generate(PROMPTS)
    engine = Engine(tiny(family), max_batch_tokens=BATCH_TOKENS)
    assert_exact(reference, PROMPTS, engine.generate(PROMPTS), expected)
    assert_exact(reference, PROMPTS, [engine.generate([prompt])[0] for prompt in PROMPTS], expected)
    engine.assert_nothing_is_held()


def test_prompt_lengths_straddle_window_page_and_step() -> None:
    lengths = [len(prompt) for prompt in PROMPTS]
    assert all(min(lengths) < limit < max(lengths) for limit in (WINDOW, PAGE_TOKENS, BATCH_TOKENS))


def test_families_tried_here_are_supported() -> None:
    """All other types are tried by `scripts/survey-models`."""
    assert set(FAMILIES) <= model.SUPPORTED


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
        ("mixtral", {"sliding_window": WINDOW}),
        ("phi3", {"sliding_window": WINDOW}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
        ("qwen3_moe", {"mlp_only_layers": [1]}),
        ("smollm3", {"use_sliding_window": True, "sliding_window": WINDOW}),
    ],
    ids=str,
)
def test_variants_of_a_family_equal_generate(
    tiny: TinyModel, assert_exact: AssertExact, family: str, changes: dict[str, Any]
) -> None:
    model_dir = tiny(family, **changes)
    reference, engine = Reference(model_dir), Engine(model_dir, max_batch_tokens=BATCH_TOKENS)
    assert_exact(reference, PROMPTS, engine.generate(PROMPTS), reference.generate(PROMPTS))


ORIGINAL = 64
"""Tokens that the models below reach without scaling. In the batch some sequences stay within and some go beyond."""
SCALED: dict[str, tuple[str, dict[str, Any]]] = {
    "yarn": ("qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}),
    "yarn, nothing but a factor": ("llama", {"rope_type": "yarn", "factor": 4.0}),
    "linear": ("llama", {"rope_type": "linear", "factor": 4.0}),
}


@pytest.mark.parametrize("name", SCALED)
def test_scaled_positions_beyond_original_equal_generate(tiny: TinyModel, assert_exact: AssertExact, name: str) -> None:
    family, rope = SCALED[name]
    model_dir = tiny(family, max_position_embeddings=ORIGINAL, rope_parameters={"rope_theta": 10000.0} | rope)
    reference, engine = Reference(model_dir), Engine(model_dir, max_batch_tokens=BATCH_TOKENS)
    assert engine.info.max_model_len == 4 * ORIGINAL
    prompts = [random_prompt(n) for n in (5, ORIGINAL - 8, ORIGINAL, 3 * ORIGINAL, 4 * ORIGINAL - 16)]
    assert_exact(reference, prompts, engine.generate(prompts), reference.generate(prompts))


def test_cached_prefix_is_not_computed_again(tiny: TinyModel) -> None:
    engine = Engine(tiny(), max_batch_tokens=16)
    engine.generate([PROMPTS[-2]], max_new_tokens=1)
    steps_alone = engine.steps[-1].steps
    engine.generate([PROMPTS[-1]], max_new_tokens=1)
    assert (steps_alone, engine.steps[-1].steps - steps_alone) == (5, 1)


def test_choices_of_one_prompt_share_its_prefill(tiny: TinyModel) -> None:
    engine = Engine(tiny(), max_batch_tokens=32)
    prompt = random_prompt(100)
    for id in range(8):
        engine.submit(id, prompt, max_new_tokens=1, temperature=1.0, seed=id)
    engine.finish(range(8))
    assert engine.steps[-1].steps <= 6, "each by itself, they would take 25"


# Where all layers slide, a window within one page never asks for a second.
TWO_PAGES: dict[str, dict[str, Any]] = {name: {"sliding_window": PAGE_TOKENS + 8} for name in ("mistral", "starcoder2")}


@pytest.mark.parametrize("family", FAMILIES)
def test_preempted_sequences_lose_nothing(tiny: TinyModel, assert_exact: AssertExact, family: str) -> None:
    prompts = [random_prompt(20 + n, seed=n) for n in range(8)]
    model_dir = tiny(family, **TWO_PAGES.get(family, {}))
    reference, engine = Reference(model_dir), Engine(model_dir, kv_cache_tokens=256)
    outputs = engine.generate(prompts, max_new_tokens=50)
    assert_exact(reference, prompts, outputs, reference.generate(prompts, new_tokens=50))
    assert engine.preemptions > 0
    engine.assert_nothing_is_held()


def test_seeded_sequence_same_alone_and_preempted(tiny: TinyModel) -> None:
    prompts = [random_prompt(20 + n, seed=n) for n in range(8)]
    sampling: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0.8, "top_p": 0.95, "seed": 5}
    engine, roomy = Engine(tiny(), kv_cache_tokens=128), Engine(tiny())
    assert engine.generate(prompts, **sampling) == [roomy.generate([prompt], **sampling)[0] for prompt in prompts]
    assert engine.preemptions > 0 and roomy.preemptions == 0


PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.3}


@pytest.mark.parametrize("settings", [{}, {"kv_cache_tokens": 8 * PAGE_TOKENS}], ids=["roomy", "preempted"])
@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 1.2, "seed": 3}, PENALTIES, PENALTIES | {"temperature": 0.9, "seed": 3}],
    ids=["greedy", "seeded", "penalized", "penalized and seeded"],
)
def test_resubmitted_sequence_continues_as_undisturbed(
    tiny: TinyModel, assert_exact: AssertExact, sampling: dict[str, Any], settings: dict[str, Any]
) -> None:
    sampling = {"max_new_tokens": 40, "min_new_tokens": 30, "stop_token_ids": tuple(range(60))} | sampling
    (whole,) = Engine(tiny()).generate([PREFIX], **sampling)
    engine, cuts = Engine(tiny(), max_batch_tokens=BATCH_TOKENS, **settings), (2, 13, 29)
    for id in range(2):
        engine.submit(id, random_prompt(20, seed=id), max_new_tokens=76)  # older, and in the end larger
    for cut in cuts:
        engine.submit(cut, PREFIX, output_ids=whole[:cut], **sampling)
    prompts, rests = [PREFIX + whole[:cut] for cut in cuts], [whole[cut:] for cut in cuts]
    assert_exact(Reference(tiny()), prompts, engine.finish(cuts), rests)
    assert bool(engine.preemptions) == bool(settings)


def test_minimum_counts_tokens_before_a_preemption(tiny: TinyModel, assert_exact: AssertExact) -> None:
    prompts = [random_prompt(20 + n, seed=n) for n in range(8)]
    sampling: dict[str, Any] = {"max_new_tokens": 60, "min_new_tokens": 30, "stop_token_ids": tuple(range(99))}
    engine, roomy = Engine(tiny(), kv_cache_tokens=128), Engine(tiny())
    outputs = engine.generate(prompts, **sampling)
    alone = [roomy.generate([prompt], **sampling)[0] for prompt in prompts]
    assert_exact(Reference(tiny()), prompts, outputs, alone)
    assert engine.preemptions > 0 and all(30 < len(output) < 60 for output in outputs)


def test_each_sequence_uses_own_sampling_parameters(tiny: TinyModel, assert_exact: AssertExact) -> None:
    prompt = random_prompt(10)
    reference = Reference(tiny())
    engine = Engine(tiny())
    for seed in range(4):
        engine.submit(seed, prompt, temperature=1.5, seed=seed)
    engine.submit(4, prompt)
    engine.submit(5, prompt, temperature=1.5, seed=0)
    outputs = engine.finish(range(6))
    assert_exact(reference, [prompt], [outputs[4]], reference.generate([prompt]))
    assert outputs[5] == outputs[0]
    assert len({tuple(output) for output in outputs}) == 5


def test_sequence_that_fills_the_cache_finishes(tiny: TinyModel) -> None:
    engine = Engine(tiny(), kv_cache_tokens=64)
    longest = engine.info.max_sequence_tokens
    prompts = [random_prompt(1), random_prompt(40), random_prompt(longest - 1)]
    for id, prompt in enumerate(prompts):
        engine.submit(id, prompt, max_new_tokens=longest - len(prompt))
    assert [len(output) for output in engine.finish(range(3))] == [63, 24, 1]
    engine.assert_nothing_is_held()


def stuck_model(tiny: TinyModel) -> str:
    """A sector holds one page of the full layers or two of the sliding layer."""
    layers = ["full_attention", "full_attention", "sliding_attention"]
    return tiny("gemma2", layer_types=layers, num_hidden_layers=3, sliding_window=2 * PAGE_TOKENS)


def test_stuck_last_sequence_starts_in_empty_cache(tiny: TinyModel, assert_exact: AssertExact) -> None:
    """The second sequence's two sliding pages come to lie in two sectors, where alone they would share one, and that
    one it lacks at its end."""
    model_dir = stuck_model(tiny)
    engine = Engine(model_dir, kv_cache_tokens=96)
    longest = engine.info.max_sequence_tokens
    assert (engine.batch.processor.cache.num_sectors, longest) == (5, 128)
    engine.submit(0, random_prompt(5), max_new_tokens=12)
    prompt, limit = random_prompt(30), longest - 30
    engine.submit(1, prompt, max_new_tokens=limit)
    reference = Reference(model_dir)
    assert_exact(reference, [prompt], engine.finish([1]), reference.generate([prompt], new_tokens=limit))
    engine.assert_nothing_is_held()


def test_a_sequence_ends_with_its_stop_token(tiny: TinyModel, assert_exact: AssertExact) -> None:
    reference = Reference(tiny())
    (greedy,) = reference.generate([PREFIX])
    place = next(n for n in range(4, 16) if greedy[n] not in greedy[:n])
    engine = Engine(tiny())
    engine.submit(0, PREFIX, stop_token_ids=(VOCABULARY - 1, greedy[place]))
    assert_exact(reference, [PREFIX], engine.finish([0]), [greedy[: place + 1]])
    assert engine.finished == {0: "stop"}


def test_stop_token_waits_for_the_minimum(tiny: TinyModel) -> None:
    (greedy,) = Reference(tiny()).generate([PREFIX])
    engine = Engine(tiny())
    engine.submit(0, PREFIX, stop_token_ids=tuple(greedy), min_new_tokens=5, max_new_tokens=6)
    (output,) = engine.finish([0])
    assert len(output) in (5, 6)
    assert not set(output[:5]) & set(greedy)


@pytest.mark.parametrize("limit", [1, 2, 16])
def test_a_sequence_ends_at_its_limit(tiny: TinyModel, assert_exact: AssertExact, limit: int) -> None:
    reference, engine = Reference(tiny()), Engine(tiny())
    output = engine.generate([PREFIX], max_new_tokens=limit)
    assert_exact(reference, [PREFIX], output, reference.generate([PREFIX], new_tokens=limit))
    assert engine.finished == {0: "length"}


def test_stop_token_at_limit_is_a_stop(tiny: TinyModel, assert_exact: AssertExact) -> None:
    reference = Reference(tiny())
    (greedy,) = reference.generate([PREFIX], new_tokens=1)
    engine = Engine(tiny())
    engine.submit(0, PREFIX, max_new_tokens=1, stop_token_ids=tuple(greedy))
    assert_exact(reference, [PREFIX], engine.finish([0]), [greedy])
    assert engine.finished == {0: "stop"}


def test_newcomers_do_not_starve_queued_prompt(tiny: TinyModel) -> None:
    engine = Engine(tiny(), max_batch_tokens=32)
    engine.submit(0, random_prompt(60), max_new_tokens=1)
    for id in range(1, 17):
        engine.submit(id, random_prompt(32, seed=id), newcomer=True, max_new_tokens=1)
        engine.turn()
    assert 0 in engine.output


def test_step_reports_one_token_per_running_sequence(tiny: TinyModel) -> None:
    engine = Engine(tiny(), max_batch_tokens=16)
    engine.submit(0, random_prompt(3), max_new_tokens=2)
    engine.submit(1, random_prompt(25), max_new_tokens=2)
    engine.submit(2, random_prompt(4), max_new_tokens=2)
    engine.finish([0, 1, 2])
    assert [(s.steps, [(t.id, t.finish_reason) for t in s.tokens]) for s in engine.steps] == [
        (1, [(0, None)]),
        (2, [(0, "length"), (1, None)]),
        (3, [(1, "length"), (2, None)]),
        (4, [(2, "length")]),
    ]
    assert engine.loads == [(2, 1), (2, 0), (1, 0), (0, 0)]
    assert all(0 <= step.cache_use <= 1 for step in engine.steps)
    assert (engine.steps[1].cache_use > 0, engine.steps[-1].cache_use) == (True, 0)


def test_newcomer_starts_before_half_done_and_queued(tiny: TinyModel, assert_exact: AssertExact) -> None:
    engine = Engine(tiny(), max_batch_tokens=16)
    engine.submit(0, random_prompt(100))
    engine.submit(1, random_prompt(100, seed=1))
    engine.turn()
    engine.submit(2, random_prompt(10), newcomer=True)
    engine.turn()
    assert list(engine.output) == [2]
    reference, prompts = Reference(tiny()), [random_prompt(100), random_prompt(100, seed=1), random_prompt(10)]
    assert_exact(reference, prompts, engine.finish([0, 1, 2]), reference.generate(prompts))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("enough", [0.85, 1.0], ids=["nearly full", "after a preemption"])
def test_newcomer_runs_at_once_in_full_cache(
    tiny: TinyModel, assert_exact: AssertExact, family: str, enough: float
) -> None:
    """The library admits none then before one of the others finishes."""
    engine = Engine(tiny(family), kv_cache_tokens=512)
    prompts = [random_prompt(32, seed=seed) for seed in range(13)]
    for id in range(12):
        engine.submit(id, prompts[id], max_new_tokens=80)
    engine.turn_until(lambda: engine.preemptions > 0 or any(step.cache_use > enough for step in engine.steps))
    before = len(engine.steps)
    engine.submit(12, prompts[12], newcomer=True, max_new_tokens=40)
    engine.turn_until(lambda: 12 in engine.output)
    assert len(engine.steps) - before <= 2
    engine.finish([12])
    assert len(engine.steps) - before <= 42, "it was preempted itself"
    outputs = [*engine.finish(range(12)), engine.output[12]]
    reference = Reference(tiny(family))
    expected = [*reference.generate(prompts[:12], new_tokens=80), *reference.generate(prompts[12:], new_tokens=40)]
    assert_exact(reference, prompts, outputs, expected)
    engine.assert_nothing_is_held()


def test_newcomers_in_full_cache_spare_oldest_other(tiny: TinyModel) -> None:
    engine = Engine(tiny(), kv_cache_tokens=256)
    for id in range(4):
        engine.submit(id, random_prompt(32, seed=id), max_new_tokens=60)
    engine.turn_until(lambda: len(engine.output) == 4)
    for id in range(4, 124):
        engine.submit(id, random_prompt(32, seed=id), newcomer=True, max_new_tokens=8)
        engine.turn()
    assert 0 in engine.finished and engine.preemptions > 0


def test_newcomer_without_room_preempts_none(tiny: TinyModel) -> None:
    """The others hold little, or what they hold is shared with the one that is not preempted."""
    for shared_pages in (0, 4):
        engine = Engine(tiny(), kv_cache_tokens=(10 + shared_pages) * PAGE_TOKENS)
        engine.submit(0, random_prompt(5 * PAGE_TOKENS), newcomer=True, max_new_tokens=30)
        for id in (1, 2):
            prompt = random_prompt(shared_pages * PAGE_TOKENS) + random_prompt(4, seed=id)
            engine.submit(id, prompt, max_new_tokens=20)
        engine.turn_until(lambda: len(engine.output) == 3)  # noqa: B023
        engine.submit(3, random_prompt(3 * PAGE_TOKENS, seed=3), newcomer=True)
        engine.turn_until(lambda: len(engine.finished) > 0)  # noqa: B023
        assert 3 not in engine.output and engine.preemptions == 0
        engine.finish([0, 1, 2, 3])


def test_preemptible_pages_shared_by_newcomer_counted_once(tiny: TinyModel) -> None:
    """Otherwise it and the one that holds them would preempt each other for as long as the first one runs."""
    engine, document = Engine(tiny(), kv_cache_tokens=20 * PAGE_TOKENS, max_batch_tokens=256), PREFIX[: 2 * PAGE_TOKENS]
    document = document + random_prompt(7 * PAGE_TOKENS, seed=8)
    engine.submit(0, random_prompt(161), newcomer=True, max_new_tokens=60)
    engine.submit(1, random_prompt(4, seed=1), max_new_tokens=26)
    engine.turn()
    engine.submit(2, document + random_prompt(4, seed=2), max_new_tokens=20)
    engine.turn_until(lambda: len(engine.output) == 3)
    engine.turn()
    engine.submit(3, document + random_prompt(5 * PAGE_TOKENS - 8, seed=3), newcomer=True, max_new_tokens=5)
    engine.finish([2])
    assert engine.preemptions == 0
    engine.finish([3])


def test_waiting_prompt_costs_no_shared_prefix(tiny: TinyModel) -> None:
    engine, document = Engine(tiny(), kv_cache_tokens=20 * PAGE_TOKENS), random_prompt(8 * PAGE_TOKENS)
    engine.submit(0, random_prompt(5), max_new_tokens=100)
    engine.submit(1, document + random_prompt(5), newcomer=True, max_new_tokens=2)
    engine.finish([1])
    engine.submit(2, random_prompt(600, seed=2), max_new_tokens=2)
    engine.turn()
    before = len(engine.steps)
    engine.submit(3, document + random_prompt(5, seed=3), newcomer=True, max_new_tokens=1)
    engine.finish([3])
    assert len(engine.steps) - before <= 2 and 2 not in engine.output
    engine.finish([0, 2])


def test_prompts_in_full_cache_are_not_stuck(tiny: TinyModel, assert_exact: AssertExact) -> None:
    """Each stuck prompt keeps pages from those that decode: the library's way takes three times the steps."""
    engine, prompts = Engine(tiny(), kv_cache_tokens=1024), [random_prompt(40, seed=seed) for seed in range(60)]
    for id, prompt in enumerate(prompts):
        engine.submit(id, prompt, newcomer=True, max_new_tokens=30 + id)
    engine.finish(range(60))
    tokens = sum(map(len, engine.output.values()))
    assert tokens / engine.steps[-1].steps > 7, "of the 8 or 9 that have room at a time"
    reference = Reference(tiny())
    expected = [reference.generate([prompt], new_tokens=30 + id)[0] for id, prompt in enumerate(prompts[:8])]
    assert_exact(reference, prompts[:8], [engine.output[id] for id in range(8)], expected)


def test_newcomers_in_full_cache_admit_long_prompt(tiny: TinyModel) -> None:
    engine, submitted, long = Engine(tiny(), kv_cache_tokens=1024), 0, 100
    for _ in range(300):
        while submitted - len(engine.finished) < 30:
            if submitted == long:
                engine.submit(submitted, random_prompt(500), max_new_tokens=10)
            else:
                engine.submit(submitted, random_prompt(40, seed=submitted), newcomer=True, max_new_tokens=20)
            submitted += 1
        engine.turn()
    assert long in engine.finished and any(step.cache_use > 0.8 for step in engine.steps)


def test_prompt_needs_no_room_for_cached_prefix(tiny: TinyModel) -> None:
    engine, document = Engine(tiny(), kv_cache_tokens=16 * PAGE_TOKENS), random_prompt(8 * PAGE_TOKENS)
    for id in range(5):
        engine.submit(id, document + random_prompt(5, seed=id), max_new_tokens=20)
    engine.finish(range(5))
    assert max(running for running, _ in engine.loads) == 5 and engine.preemptions == 0


def test_preempted_sequence_precedes_later_ones(tiny: TinyModel) -> None:
    engine = Engine(tiny(), kv_cache_tokens=8 * PAGE_TOKENS)
    for id in range(12):
        engine.submit(id, random_prompt(30, seed=id), newcomer=id % 3 == 0, max_new_tokens=60)
    engine.finish(range(12))
    assert engine.preemptions > 0
    for kind in ([0, 3, 6, 9], [1, 2, 4, 5, 7, 8, 10, 11]):
        assert [id for id in engine.finished if id in kind] == kind


def test_long_newcomer_delays_no_short_one(tiny: TinyModel) -> None:
    engine = Engine(tiny(), max_batch_tokens=32)
    engine.submit(0, random_prompt(300), newcomer=True)
    engine.turn()
    engine.submit(1, random_prompt(30, seed=1), newcomer=True)
    engine.turn()
    engine.turn()
    assert list(engine.output) == [1]


def test_short_newcomers_do_not_starve_long_one(tiny: TinyModel) -> None:
    engine = Engine(tiny(), max_batch_tokens=32)
    engine.submit(0, random_prompt(300), newcomer=True)
    for id in range(1, 48):
        engine.submit(id, random_prompt(32, seed=id), newcomer=True, max_new_tokens=1)
        engine.turn()
    assert 0 in engine.output


def test_an_idle_turn_reports_nothing(tiny: TinyModel) -> None:
    engine = Engine(tiny())
    engine.turn()
    assert engine.steps == []


def test_cancelling_frees_cache_for_waiting_sequences(tiny: TinyModel, assert_exact: AssertExact) -> None:
    engine, waiting = Engine(tiny(), kv_cache_tokens=64), random_prompt(48)
    engine.submit(0, random_prompt(40), max_new_tokens=20)
    engine.submit(1, waiting, max_new_tokens=16)
    engine.turn()
    engine.turn()
    assert engine.loads[-1] == (1, 1)
    engine.cancel(0)
    reference = Reference(tiny())
    assert_exact(reference, [waiting], engine.finish([1]), reference.generate([waiting]))
    assert len(engine.output[0]) == 2
    engine.assert_nothing_is_held()


def test_cancelling_sole_cache_holder_lets_others_run(tiny: TinyModel, assert_exact: AssertExact) -> None:
    engine = Engine(stuck_model(tiny), kv_cache_tokens=96)
    engine.submit(0, random_prompt(5), max_new_tokens=12)
    engine.submit(1, random_prompt(30), max_new_tokens=98)
    engine.turn_until(lambda: engine.batch.processor.scheduler.block_new_requests)
    engine.submit(2, random_prompt(7), max_new_tokens=8)
    engine.cancel(1)
    reference = Reference(stuck_model(tiny))
    assert_exact(
        reference, [random_prompt(7)], engine.finish([2]), reference.generate([random_prompt(7)], new_tokens=8)
    )


def test_sequence_cancelled_while_waiting_never_runs(tiny: TinyModel) -> None:
    engine = Engine(tiny(), kv_cache_tokens=64)
    engine.submit(0, random_prompt(60), max_new_tokens=4)
    engine.submit(1, random_prompt(60, seed=1), max_new_tokens=4)
    engine.turn()
    engine.cancel(1)
    engine.finish([0])
    engine.turn()
    assert 1 not in engine.output
    engine.assert_nothing_is_held()


def test_sequence_cancelled_in_submitting_turn_never_runs(tiny: TinyModel) -> None:
    engine = Engine(tiny())
    engine.submit(0, random_prompt(5))
    engine.cancel(0)
    engine.turn()
    assert engine.output == {}
    engine.assert_nothing_is_held()


class LateQueue(queue.Queue[Any]):
    """A queue in which something happens just after it was found empty."""

    late: Callable[[], None] | None = None

    def empty(self) -> bool:
        is_empty = super().empty()
        late, self.late = self.late, None
        if is_empty and late is not None:
            late()
        return is_empty


def test_a_cancellation_never_overtakes_its_sequence(tiny: TinyModel) -> None:
    engine = Engine(tiny())
    requests = LateQueue()
    engine.batch.input_queue = engine.batch.processor.input_queue = requests

    def submit_and_cancel() -> None:
        engine.submit(0, random_prompt(5))
        engine.cancel(0)

    requests.late = submit_and_cancel
    for _ in range(3):
        engine.turn()
    assert engine.output == {}
    engine.assert_nothing_is_held()


def test_cancelling_ended_or_unknown_sequence_does_nothing(tiny: TinyModel, assert_exact: AssertExact) -> None:
    engine = Engine(tiny())
    expected = engine.generate([PREFIX])
    engine.cancel(0)
    engine.cancel(77)
    assert_exact(Reference(tiny()), [PREFIX], engine.generate([PREFIX]), expected)


@pytest.mark.parametrize(("family", "seed"), [("llama", 1), ("gemma2", 2)])
def test_random_arrivals_in_tiny_cache_change_nothing(
    tiny: TinyModel, assert_exact: AssertExact, family: str, seed: int
) -> None:
    chance = random.Random(seed)
    engine = Engine(tiny(family), kv_cache_tokens=160, max_batch_tokens=24)
    prompts = [random_prompt(chance.randint(1, 70)) for _ in range(40)]
    prompts = [PREFIX[: chance.choice((0, 33, 64))] + prompt if chance.random() < 0.5 else prompt for prompt in prompts]
    limits = [min(chance.choice((1, 2, 30)), 160 - len(prompt)) for prompt in prompts]
    cancelled = set()
    for id, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        engine.submit(id, prompt, max_new_tokens=limit)
        for _ in range(chance.randint(0, 6)):
            engine.turn()
        if chance.random() < 0.2:
            cancelled.add(victim := chance.randint(0, id))
            engine.cancel(victim)
    engine.finish(id for id in range(40) if id not in cancelled)
    engine.turn()
    assert all(len(engine.output[id]) == limits[id] for id in range(40) if id not in cancelled)
    begun, outputs = [prompts[id] for id in engine.output], list(engine.output.values())
    reference = Reference(tiny(family))
    assert_exact(reference, begun, outputs, reference.generate(begun, new_tokens=[len(row) for row in outputs]))
    engine.assert_nothing_is_held()


def test_library_keeps_our_configuration(tiny: TinyModel) -> None:
    engine = Engine(tiny(), kv_cache_tokens=1000, max_batch_tokens=40)
    config, processor = engine.batch.continuous_batching_config, engine.batch.processor
    ios = processor.inputs_and_outputs
    assert isinstance(ios, input_outputs.ContinuousBatchingIOs)
    assert ios.attention_mask is None
    assert (config.use_cuda_graph, config.use_async_batching) == ((False, False), False)
    assert (config.page_size, config.num_blocks, config.max_blocks_per_request) == (PAGE_TOKENS, 31, 0)
    assert (config.max_batch_tokens, config.max_requests_per_batch) == (40, 40)
    assert config.varlen_compile_config is None and config.decode_compile_config is None
    assert processor.cache.use_prefix_sharing
    assert engine.batch.model.config._attn_implementation == "longhaul_varlen"


def test_limits_come_from_cache_and_model(tiny: TinyModel) -> None:
    small, large = Engine(tiny(), kv_cache_tokens=100).info, Engine(tiny(), kv_cache_tokens=5000).info
    assert (small.kv_cache_tokens, small.max_sequence_tokens, small.max_model_len) == (96, 96, 512)
    assert (large.kv_cache_tokens, large.max_sequence_tokens) == (4992, 512)
    assert (small.vocab_size, small.max_batch_tokens, small.max_running) == (VOCABULARY, 64, 64)
    assert (small.model_type, small.device, small.dtype) == ("llama", "cpu", "float32")


def test_loop_thread_reports_why_it_died(tiny: TinyModel) -> None:
    engine = Engine(tiny())
    died = threading.Event()
    engine.batch._on_crash = lambda error: (engine.crashes.append(error), died.set())
    engine.batch.start()
    engine.submit(0, [VOCABULARY + 5])  # the server never sends such an id
    assert died.wait(timeout=60)
    engine.batch.join(0.0)
    assert [type(error) for error in engine.crashes] == [IndexError]
    assert engine.output == {}


# The library's methods that we override, and those that we rely on beyond their signatures.
RELIED_ON = {
    continuous_api.ContinuousBatchingManager: [
        "__init__",
        "_create_batch_processor",
        "_generation_loop_body",
        "_generation_step",
        "_handle_critical_error",
        "_run_generation_loop",
        "add_request",
        "cancel_request",
        "switch_to_cb_friendly_attn",
        "warmup",
    ],
    continuous_api.ContinuousBatchProcessor: [
        "__init__",
        "_generation_step",
        "_update_tp_group_state",
        "prepare_next_batch",
        "update_batch",
    ],
    continuous_api.OutputRouter: ["deliver", "deliver_batch", "fail_and_deliver"],
    cache.PagedAttentionCache: [
        "__init__",
        "can_store_request_tokens",
        "compute_free_capacity",
        "count_storable_requests",
        "evict_cached_blocks",
        "free_blocks",
        "mark_complete_blocks",
    ],
    BlockLedger: ["acquire", "evict_cached_blocks", "register_new_hash", "release"],
    cache_allocators.FullAttentionCacheAllocator: [
        "__init__",
        "get_seqlen_k",
        "mark_complete_blocks",
        "match_prefix_blocks",
        "needs_new_blocks",
        "update",
    ],
    cache_allocators.SlidingAttentionCacheAllocator: ["__init__", "get_read_indices", "get_seqlen_k", "update"],
    input_outputs.ContinuousBatchingIOs: ["get_model_kwargs", "prepare_batch_tensors", "prepare_batch_update"],
    model_runner.ModelRunner: ["_forward_process_and_sample", "_sample"],
    offloading_manager.OffloadingManager: ["__init__", "offload_requests"],
    requests.RequestState: ["create_equivalent_initial_request", "update_and_check_completion"],
    scheduler.FIFOScheduler: [
        "__init__",
        "_get_waiting_candidates",
        "_infer_request_tokens",
        "_process_candidates",
        "_schedule_request",
        "_try_to_meet_safety_margin",
        "add_waiting_request",
        "clear_cancelled_requests",
        "finish_request",
        "schedule_batch",
    ],
}
DIGESTS = {
    "ContinuousBatchingManager.__init__": "c17deedf60b75aab",
    "ContinuousBatchingManager._create_batch_processor": "cc0fca82818d2471",
    "ContinuousBatchingManager._generation_loop_body": "b138833254b235b0",
    "ContinuousBatchingManager._generation_step": "33491329c3ae47a0",
    "ContinuousBatchingManager._handle_critical_error": "84bd1f89da0d9553",
    "ContinuousBatchingManager._run_generation_loop": "ccf319f4eb072ce8",
    "ContinuousBatchingManager.add_request": "614fe428df5a446a",
    "ContinuousBatchingManager.cancel_request": "b5561ad6d420759c",
    "ContinuousBatchingManager.switch_to_cb_friendly_attn": "dbb1a528a7185c86",
    "ContinuousBatchingManager.warmup": "51684c3e34117c63",
    "ContinuousBatchProcessor.__init__": "589aafcfc508b203",
    "ContinuousBatchProcessor._generation_step": "91e7d3b5bd328f31",
    "ContinuousBatchProcessor._update_tp_group_state": "2731052eb9413443",
    "ContinuousBatchProcessor.prepare_next_batch": "cbc297079d4a9591",
    "ContinuousBatchProcessor.update_batch": "cbad955852af2e67",
    "OutputRouter.deliver": "37d803adc21f1789",
    "OutputRouter.deliver_batch": "837fee22f767dd54",
    "OutputRouter.fail_and_deliver": "aeb3ffdafba8d023",
    "PagedAttentionCache.__init__": "7846b73eca22c36a",
    "PagedAttentionCache.can_store_request_tokens": "f6ed5b58c1e298f5",
    "PagedAttentionCache.compute_free_capacity": "3b3613aaab23ab42",
    "PagedAttentionCache.count_storable_requests": "d15c48a8bd5b247d",
    "PagedAttentionCache.evict_cached_blocks": "8fc67c4b57a7cb8e",
    "PagedAttentionCache.free_blocks": "c8b076a99e2fc903",
    "PagedAttentionCache.mark_complete_blocks": "f6255bb6c6a6eb93",
    "BlockLedger.acquire": "62db26bf074c9dfe",
    "BlockLedger.evict_cached_blocks": "ebe9f666917b3c06",
    "BlockLedger.register_new_hash": "41a48755438fe125",
    "BlockLedger.release": "26c0decaff704922",
    "FullAttentionCacheAllocator.__init__": "06ce8c87d7e0c099",
    "FullAttentionCacheAllocator.get_seqlen_k": "23a29b5701411683",
    "FullAttentionCacheAllocator.mark_complete_blocks": "dc3b753e0caacf38",
    "FullAttentionCacheAllocator.match_prefix_blocks": "b38d0ad90a9d4775",
    "FullAttentionCacheAllocator.needs_new_blocks": "734132360e529400",
    "FullAttentionCacheAllocator.update": "38ffee2b3818ed73",
    "SlidingAttentionCacheAllocator.__init__": "3506e6cb878eddde",
    "SlidingAttentionCacheAllocator.get_read_indices": "2ff31c15957c8438",
    "SlidingAttentionCacheAllocator.get_seqlen_k": "d9838dd9ac212ce2",
    "SlidingAttentionCacheAllocator.update": "7cd1400ea34be023",
    "ContinuousBatchingIOs.get_model_kwargs": "ad765ba1a8e03b37",
    "ContinuousBatchingIOs.prepare_batch_tensors": "2d979073bbd4f215",
    "ContinuousBatchingIOs.prepare_batch_update": "f2e488c1cea7563f",
    "ModelRunner._forward_process_and_sample": "e326cff070721010",
    "ModelRunner._sample": "e366edcd1b7c57bc",
    "OffloadingManager.__init__": "da2c109b383c5a79",
    "OffloadingManager.offload_requests": "750d6cb99a3a4ac4",
    "RequestState.create_equivalent_initial_request": "da32ec325450e039",
    "RequestState.update_and_check_completion": "db53d0d16360ef22",
    "FIFOScheduler.__init__": "e7284e01b09b075b",
    "FIFOScheduler._get_waiting_candidates": "43968829acdd62e8",
    "FIFOScheduler._infer_request_tokens": "532be9998b22de8f",
    "FIFOScheduler._process_candidates": "095deb6081af2d7a",
    "FIFOScheduler._schedule_request": "647344a9b5a0906a",
    "FIFOScheduler._try_to_meet_safety_margin": "3847634e4b961e1c",
    "FIFOScheduler.add_waiting_request": "9ef098f71ace6777",
    "FIFOScheduler.clear_cancelled_requests": "c3c5dd503929ae64",
    "FIFOScheduler.finish_request": "133deb74d17abec7",
    "FIFOScheduler.schedule_batch": "15a13a70ff385794",
}


@pytest.mark.parametrize("owner", RELIED_ON, ids=lambda owner: owner.__name__)
def test_library_methods_are_unchanged(owner: type) -> None:
    digests = {
        f"{owner.__name__}.{name}": hashlib.sha256(inspect.getsource(getattr(owner, name)).encode()).hexdigest()[:16]
        for name in RELIED_ON[owner]
    }
    changed = [name for name, digest in digests.items() if DIGESTS.get(name) != digest]
    assert not changed, (
        f"transformers changed {', '.join(changed)}, which container/engine overrides or relies on. Read what is new "
        "against batch.py, fair_scheduler.py, attention.py and sampler.py, run scripts/test and scripts/bench, and "
        f"only then put the new digests into this file: { {name: digests[name] for name in changed} }"
    )


def test_repetition_penalty_equals_generate_under_preemption(tiny: TinyModel, assert_exact: AssertExact) -> None:
    prompts = [random_prompt(20 + n, seed=n) for n in range(8)]
    engine = Engine(tiny(), kv_cache_tokens=128)
    outputs = engine.generate(prompts, max_new_tokens=40, repetition_penalty=1.5)
    reference = Reference(tiny(), repetition_penalty=1.5)
    assert_exact(reference, prompts, outputs, reference.generate(prompts, new_tokens=40))
    assert outputs != Reference(tiny()).generate(prompts, new_tokens=40)
    assert engine.preemptions > 0


def test_log_probabilities_ignore_changes_to_scores(tiny: TinyModel) -> None:
    prompt = random_prompt(12)
    engine = Engine(tiny())
    engine.submit(1, random_prompt(30, seed=9))
    engine.submit(0, prompt, logprobs=3, temperature=0.7, seed=4, logit_bias=((5, 3.0),), max_new_tokens=8)
    (output,) = engine.finish([0])
    scored = [new.logprobs[0] for step in engine.steps for new in step.tokens if new.id == 0]
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    own = torch.log_softmax(plain(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1], dim=-1)
    torch.testing.assert_close(torch.tensor([one.logprob for one in scored]), own[range(8), output], atol=1e-4, rtol=0)
    assert [[id for id, _ in one.top] for one in scored] == own.topk(3).indices.tolist()
