from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from container.engine.worker.batch import PAGE_TOKENS
from container.engine.worker.score_guard import ALL_EQUAL, NOT_NUMBERS, ScoreGuard
from testing.container.hand_turned_engine import Engine
from testing.container.poisoned_models import poison_all, poison_rows, save_poisoned
from testing.tiny_models import TinyModel, random_prompt

NAN, INFINITE = math.nan, math.inf
POISON = 77
"""A token whose embedding is poisoned in some tests."""


def healthy(length: int, seed: int = 0) -> list[int]:
    return [1 if token_id == POISON else token_id for token_id in random_prompt(length, seed=seed)]


PREFIX = healthy(2 * PAGE_TOKENS)
EMBEDDING = "model.embed_tokens.weight"
OPT_NORM = "model.decoder.layers.1.self_attn_layer_norm"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        pytest.param([1.0, -math.inf, 2.0], None, id="ruled out tokens"),
        pytest.param([1.0, NAN, 2.0], NOT_NUMBERS, id="one NaN"),
        pytest.param([1.0, INFINITE, 2.0], NOT_NUMBERS, id="one infinite"),
        pytest.param([-INFINITE] * 3, NOT_NUMBERS, id="all ruled out"),
        pytest.param([0.0] * 3, ALL_EQUAL, id="all equal"),
        pytest.param([-3.5, -3.5, -3.4], None, id="negative"),
    ],
)
def test_row_at_fault_is_found(row: list[float], fault: str | None) -> None:
    guard = ScoreGuard(4, torch.device("cpu"))
    guard.look(torch.tensor([[1.0, 2.0, 3.0], row, [3.0, 2.0, 1.0], [NAN] * 3]))
    assert guard.faults(3) == ({} if fault is None else {1: fault}), "the fourth row is no sequence's"


def test_later_step_forgets_earlier_faults() -> None:
    guard = ScoreGuard(2, torch.device("cpu"))
    guard.look(torch.tensor([[NAN, 1.0], [1.0, 2.0]]))
    guard.look(torch.tensor([[2.0, 1.0]]))
    assert guard.faults(1) == {}


MODELS = [
    pytest.param("llama", "float32", "model.layers.1.self_attn.v_proj.weight", NAN, NOT_NUMBERS, id="NaN in a layer"),
    pytest.param("llama", "bfloat16", "model.norm.weight", INFINITE, NOT_NUMBERS, id="infinite in the last norm"),
    pytest.param("llama", "float16", "model.layers.0.mlp.up_proj.weight", 6e4, NOT_NUMBERS, id="overflow in float16"),
    pytest.param("llama", "bfloat16", "model.layers.1.mlp.down_proj.weight", 3e38, NOT_NUMBERS, id="in bfloat16"),
    pytest.param("llama", "float16", "lm_head.weight", 6e4, NOT_NUMBERS, id="overflow of the scores alone"),
    pytest.param("gemma2", "float16", "lm_head.weight", 6e4, NOT_NUMBERS, id="overflow of bounded scores"),
    pytest.param("llama", "float32", "model.layers.1.mlp.down_proj.weight", 1e25, ALL_EQUAL, id="overflow of squares"),
    pytest.param("olmo2", "float32", "model.layers.1.self_attn.q_proj.weight", INFINITE, NOT_NUMBERS, id="of queries"),
    pytest.param("qwen2", "float16", "model.layers.1.self_attn.k_proj.bias", 7e4, NOT_NUMBERS, id="of keys"),
    pytest.param("glm4", "bfloat16", "model.layers.0.self_attn.k_proj.bias", 3e38, NOT_NUMBERS, id="of all keys alike"),
    pytest.param("opt", "float32", f"{OPT_NORM}.weight", 1e25, NOT_NUMBERS, id="of attention"),
    pytest.param("qwen3_moe", "float32", "model.layers.0.mlp.gate.weight", NAN, NOT_NUMBERS, id="NaN in a router"),
]


@pytest.mark.parametrize(("family", "dtype", "name", "value", "fault"), MODELS)
def test_poisoned_model_fails_every_prompt(
    tiny: TinyModel, tmp_path: Path, family: str, dtype: str, name: str, value: float, fault: str
) -> None:
    engine = Engine(save_poisoned(tiny(family), tmp_path, poison_all(name, value)), dtype=dtype)
    ids = range(6)
    for id in ids:
        engine.submit(id, healthy(5 + 40 * (id % 2), seed=id), temperature=id % 3, seed=id, logprobs=2)
    engine.settle(ids)
    assert engine.output == {} and set(engine.failed) == set(ids)
    for reason in engine.failed.values():
        assert f"scores {fault} at output token 1" in reason
        assert ("LONGHAUL_DTYPE=float32" in reason) == (dtype != "float32")
    engine.submit(6, healthy(3))
    engine.settle([6])
    engine.assert_nothing_is_held()


@pytest.fixture(scope="module")
def poisoned_token(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return models by family that can't read one token."""
    return {
        family: save_poisoned(tiny(family), tmp_path_factory.mktemp(family), poison_rows(EMBEDDING, [POISON]))
        for family in ("llama", "gemma2", "mixtral")
    }


PENALTIES = {"repetition_penalty": 1.3, "presence_penalty": 0.4}
NEVER: dict[str, Any] = {"logit_bias": ((POISON, -100.0),)}
"""Options of a text in which the token never comes up."""
SAMPLINGS: list[dict[str, Any]] = [
    NEVER | {"logprobs": 2},
    NEVER | {"temperature": 0.9, "seed": 4, "top_p": 0.9},
    NEVER | {"temperature": 1.2, "seed": 5, "logprobs": 1} | PENALTIES,
]


@pytest.mark.parametrize("batch_tokens", [24, 256], ids=["in pieces", "at once"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_poisoned_prompt_changes_no_other(poisoned_token: dict[str, str], family: str, batch_tokens: int) -> None:
    """Healthy prompts come before, with and after poisoned ones, and share a prefix with them or not."""
    engine = Engine(poisoned_token[family], max_batch_tokens=batch_tokens)
    prompts = [
        PREFIX + healthy(5, seed=1) if number % 2 else healthy(20 + 7 * number, seed=number) for number in range(6)
    ]
    samplings = [SAMPLINGS[number % 3] for number in range(6)]
    undisturbed = Engine(poisoned_token[family])
    alone = [undisturbed.generate([p], **s) for p, s in zip(prompts, samplings, strict=True)]
    for round_ in range(2):
        for number, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            id = 100 * round_ + 10 * number
            engine.submit(id + 1, [*PREFIX, POISON, *healthy(number, seed=number)], **sampling)
            engine.submit(id, prompt, **sampling)
            engine.submit(id + 2, [*prompt, POISON], **sampling)
            if round_ == 1:
                engine.turn()
        engine.settle(100 * round_ + 10 * number + k for number in range(6) for k in range(3))
    assert {id % 10 for id in engine.failed} == {1, 2} and len(engine.failed) == 24
    outputs = [engine.output[100 * round_ + 10 * number] for round_ in range(2) for number in range(6)]
    assert outputs == 2 * [output for (output,) in alone]
    scores = [one for step in engine.steps for new in step.tokens for one in new.logprobs]
    assert all(math.isfinite(logprob) for one in scores for logprob in [one.logprob, *(top for _, top in one.top)])
    engine.assert_nothing_is_held()


def test_fault_amid_text_names_its_token(tiny: TinyModel, tmp_path: Path) -> None:
    prompt = healthy(40)
    (whole,) = Engine(tiny()).generate([prompt], max_new_tokens=12)
    place = next(n for n in range(3, 12) if whole[n] not in prompt + whole[:n])
    engine = Engine(save_poisoned(tiny(), tmp_path, poison_rows(EMBEDDING, [whole[place]])))
    engine.submit(0, prompt, max_new_tokens=12)
    engine.submit(1, prompt, max_new_tokens=12, output_ids=whole[:2])  # as after an engine's death
    engine.settle([0, 1])
    assert engine.output == {0: whole[: place + 1], 1: whole[2 : place + 1]}
    assert all(f"at output token {place + 2}:" in reason for reason in engine.failed.values())


def test_fault_lets_waiting_prompts_in(poisoned_token: dict[str, str]) -> None:
    engine = Engine(poisoned_token["llama"], kv_cache_tokens=4 * PAGE_TOKENS)
    prompt = healthy(3 * PAGE_TOKENS, seed=3)
    engine.submit(0, [*healthy(3 * PAGE_TOKENS), POISON])
    engine.submit(1, prompt, **NEVER)
    engine.settle([0, 1])
    assert list(engine.failed) == [0]
    assert engine.output == {1: Engine(poisoned_token["llama"]).generate([prompt], **NEVER)[0]}
    assert engine.preemptions == 0
    engine.assert_nothing_is_held()


def test_poisoned_preempted_and_cancelled_mix(poisoned_token: dict[str, str]) -> None:
    """What was cancelled before it showed that it is poisoned leaves blocks behind that others would share."""
    model_dir = poisoned_token["llama"]
    engine = Engine(model_dir, kv_cache_tokens=7 * PAGE_TOKENS, max_batch_tokens=2 * PAGE_TOKENS)
    prompts = {id: PREFIX + healthy(3 + id, seed=id) + ([POISON] * (id % 3 == 0)) for id in range(12)}
    engine.submit(100, [*PREFIX[:-1], POISON, *healthy(90)])
    for _ in range(3):
        engine.turn()
    engine.cancel(100)
    for id, prompt in prompts.items():
        engine.submit(id, prompt, max_new_tokens=60, **NEVER)
        engine.turn()
    engine.settle(prompts)
    assert sorted(engine.failed) == [0, 3, 6, 9] and engine.preemptions > 0
    undisturbed = Engine(model_dir)
    for id in engine.finished:
        assert engine.output[id] == undisturbed.generate([prompts[id]], max_new_tokens=60, **NEVER)[0]
    engine.assert_nothing_is_held()
