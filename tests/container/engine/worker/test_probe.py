"""Models whose attention is of another shape than a llama's: found by the probe, and exact in batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from container.engine.worker import attention
from container.engine.worker.attention import UnexpectedCall
from container.engine.worker.layout import FULL, SLIDING, AttentionCall, CallGroup, Layout
from container.engine.worker.probe import probe
from container.engine.worker.refusal import ModelRefused
from testing.container.hand_turned_engine import Engine
from testing.exactness import Reference
from testing.model_recipes import FIELDS
from testing.model_zoo import tiny_checkpoint
from testing.tiny_models import TinyModel, random_prompt

AssertExact = Callable[..., None]

UNUSUAL = (
    "deepseek_v3",
    "deepseek_v32",
    "diffllama",
    "gemma4_text",
    "gpt_oss",
    "hrm_text",
    "jetmoe",
    "llama4_text",
    "mimo_v2_flash",
    "stablelm",
)
WINDOW = FIELDS["sliding_window"]

PROMPTS = [random_prompt(n) for n in (1, WINDOW - 1, WINDOW + 1, 2 * WINDOW, 77)]


@pytest.fixture(scope="session")
def unusual(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Return a function that makes a tiny model of any type, without a stop token, once for all tests."""

    @cache
    def get(model_type: str = "llama", **changes: Any) -> str:
        directory = tmp_path_factory.mktemp(model_type)
        return tiny_checkpoint(AutoModelForCausalLM, model_type, directory, eos_token_id=None, **changes)

    return get


def call(**changes: Any) -> AttentionCall:
    plain: dict[str, Any] = {"kind": FULL, "query_heads": 4, "key_heads": 2, "key_size": 16, "value_size": 16}
    return AttentionCall(**(plain | changes))


def load(directory: str) -> PreTrainedModel:
    attention.register()
    model: Any = AutoModelForCausalLM.from_pretrained(directory, attn_implementation=attention.NAME)
    return model


LATENT = call(key_heads=4, key_size=24, value_size=12)
SLIDES = call(kind=SLIDING, window=WINDOW)
EXPECTED: dict[str, list[AttentionCall]] = {
    "deepseek_v3": [LATENT] * 4,
    "deepseek_v32": [replace(LATENT, is_indexed=True)] * 4,
    "diffllama": [call()] * 8,
    "gemma2": [replace(SLIDES, softcap=50.0), call(softcap=50.0)] * 2,
    "gemma4_text": [SLIDES, call(key_heads=1, key_size=32, value_size=32)] * 3,
    "gpt_oss": [replace(SLIDES, has_sinks=True), call(has_sinks=True)] * 2,
    "jetmoe": [call(key_heads=4)] * 4,
    "llama4_text": [call(chunk=WINDOW), call()] * 2,
    "mimo_v2_flash": [call(value_size=12), replace(SLIDES, key_heads=4, value_size=12, has_sinks=True)] * 2,
    "mistral": [SLIDES] * 4,
    "qwen3_5_text": [call()] * 2,
    "stablelm": [call()] * 4,
}


@pytest.mark.parametrize("family", EXPECTED)
def test_probe_finds_calls_of_a_step(unusual: TinyModel, family: str) -> None:
    assert list(probe(load(unusual(family))).calls) == EXPECTED[family]


@pytest.mark.parametrize("family", UNUSUAL)
def test_unusual_attention_equals_generate(unusual: TinyModel, assert_exact: AssertExact, family: str) -> None:
    directory = unusual(family)
    reference = Reference(directory)
    engine = Engine(directory, max_batch_tokens=40, unverified_models=True)
    assert_exact(reference, PROMPTS, engine.generate(PROMPTS), reference.generate(PROMPTS))
    assert_exact(reference, PROMPTS[-1:], engine.generate(PROMPTS[-1:]), reference.generate(PROMPTS[-1:]))
    engine.assert_nothing_is_held()


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss", "llama4_text"])
def test_unusual_attention_survives_preemption(unusual: TinyModel, assert_exact: AssertExact, family: str) -> None:
    directory = unusual(family, sliding_window=40) if family == "gpt_oss" else unusual(family)
    prompts = [random_prompt(20 + n, seed=n) for n in range(5)]
    reference = Reference(directory)
    engine = Engine(directory, kv_cache_tokens=128, unverified_models=True)
    outputs = engine.generate(prompts, max_new_tokens=40)
    assert_exact(reference, prompts, outputs, reference.generate(prompts, new_tokens=40))
    assert engine.preemptions > 0


def change_attention(model: PreTrainedModel, layer: int, **changes: Any) -> None:
    """Have a layer hand other arguments to attention than it does."""
    part: Any = model.get_submodule(f"model.layers.{layer}.self_attn")
    forward = part.forward
    part.forward = lambda **arguments: forward(**(arguments | changes))


def test_probe_takes_window_from_call_without_mask(tiny: TinyModel) -> None:
    model = load(tiny())
    change_attention(model, 1, attention_mask=None, sliding_window=9)
    assert list(probe(model).calls) == [call(), call(kind=SLIDING, window=9)]


def test_two_windows_in_one_model_are_refused(tiny: TinyModel) -> None:
    model = load(tiny())
    for layer, window in enumerate((9, 16)):
        change_attention(model, layer, attention_mask=None, sliding_window=window)
    with pytest.raises(ModelRefused, match="windows of 9 and 16 tokens"):
        probe(model)


def test_unknown_argument_of_attention_is_refused(tiny: TinyModel) -> None:
    model = load(tiny())
    change_attention(model, 0, position_bias=torch.ones(1), head_mask=None, dropout_mask=False)
    with pytest.raises(ModelRefused, match="calls attention with position_bias, which"):
        probe(model)


@pytest.mark.parametrize(
    "mask", [torch.zeros(1, 1, 3, 3), torch.ones(1, 3), torch.eye(3)], ids=["all", "2d", "diagonal"]
)
def test_mask_of_the_models_own_is_refused(tiny: TinyModel, mask: torch.Tensor) -> None:
    model = load(tiny())
    change_attention(model, 0, attention_mask=mask)
    with pytest.raises(ModelRefused, match="changes the mask"):
        probe(model)


@pytest.mark.parametrize("causal", [torch.ones(1, 1, 3, 3, dtype=torch.bool).tril(), torch.full((3, 3), -1e4).triu(1)])
def test_causal_mask_of_the_models_own_is_taken(tiny: TinyModel, causal: torch.Tensor) -> None:
    model = load(tiny())
    change_attention(model, 0, attention_mask=causal)
    assert list(probe(model).calls) == [call()] * 2


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "changes the mask that attention is given": ("doge", {"num_key_value_heads": 2}),
    "attends in both directions": ("gemma3_text", {"use_bidirectional_attention": True}),
    "fixes its attention function": ("bloom", {"n_layer": 2, "n_head": 4}),
    "counts positions by its own cache": ("bart", {"decoder_layers": 1, "encoder_layers": 1, "decoder_ffn_dim": 96}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_model_that_fits_no_batch_is_refused(tiny: TinyModel, reason: str) -> None:
    family, changes = REFUSED[reason]
    with pytest.raises(ModelRefused, match=reason):
        probe(load(tiny(family, **changes)))


def test_fault_in_the_models_code_is_refused(tiny: TinyModel) -> None:
    model = load(tiny())
    model.get_submodule("model.layers.0").forward = lambda *args, **kwargs: {}["key"]
    with pytest.raises(ModelRefused, match="LlamaForCausalLM fails without a cache of its own: KeyError"):
        probe(model)


def test_attention_elsewhere_than_in_steps_raises(tiny: TinyModel) -> None:
    model = load(tiny())
    probe(model)
    assert attention.NAME not in ALL_MASK_ATTENTION_FUNCTIONS
    with pytest.raises(UnexpectedCall, match="outside a step of the batch"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


def test_call_of_another_shape_raises(tiny: TinyModel) -> None:
    engine = Engine(tiny())
    cache = engine.batch.processor.cache
    cache.places = (cache.places[0], replace(cache.places[1], shape=(4, 4, 16, 16)))
    engine.submit(0, random_prompt(5))
    with pytest.raises(UnexpectedCall, match=r"call 1 of the step has heads and sizes \(4, 2, 16, 16\)"):
        engine.turn()


@pytest.mark.parametrize("wanted", [{"has_sinks": True}, {"softcap": 2.0}, {"is_indexed": True}], ids=str)
def test_call_of_another_kind_raises(tiny: TinyModel, wanted: dict[str, Any]) -> None:
    engine = Engine(tiny())
    cache = engine.batch.processor.cache
    cache.places = (replace(cache.places[0], call=call(**wanted)), cache.places[1])
    engine.submit(0, random_prompt(5))
    with pytest.raises(UnexpectedCall, match="call 0 of the step"):
        engine.turn()


@pytest.mark.parametrize(
    ("calls", "message"), [(0, "made 1 attention calls; at load it was 2"), (2, "at most 2 calls")]
)
def test_another_number_of_calls_raises(tiny: TinyModel, calls: int, message: str) -> None:
    engine = Engine(tiny())
    part: Any = engine.batch.model.get_submodule("model.layers.1.self_attn")
    forward = part.forward

    def repeat(**arguments: Any) -> Any:
        out = arguments["hidden_states"], None
        for _ in range(calls):
            out = forward(**arguments)
        return out

    part.forward = repeat
    engine.submit(0, random_prompt(5))
    with pytest.raises(UnexpectedCall, match=message):
        engine.turn()


def group(**changes: Any) -> CallGroup:
    plain: dict[str, Any] = {"kind": FULL, "numbers": (0,), "heads": 2, "size": 16, "window": None}
    return CallGroup(**(plain | changes))


@pytest.mark.parametrize(
    ("calls", "groups", "elements"),
    [
        ([call()] * 3, [group(numbers=(0, 1, 2))], 3 * 2 * 2 * 16),
        ([call(key_size=24, value_size=12)], [group(heads=1, size=48)], 2 * 48),
        ([call(), call(key_heads=8, key_size=8, value_size=8)], [group(numbers=(0, 1), heads=1, size=64)], 2 * 2 * 64),
        (
            [call(kind=SLIDING, window=9), call(key_heads=1), call(kind=SLIDING, window=9)],
            [group(kind=SLIDING, numbers=(0, 2), window=9), group(numbers=(1,), heads=1)],
            2 * 2 * 2 * 16 + 2 * 16,
        ),
        ([], [group(heads=1, size=8)], 16),
    ],
    ids=["alike", "sizes", "heads", "kinds", "none"],
)
def test_calls_share_rows_of_one_length(calls: list[AttentionCall], groups: list[CallGroup], elements: int) -> None:
    layout = Layout(calls=tuple(calls))
    assert (list(layout.groups), layout.elements_per_token) == (groups, elements)


def test_no_more_states_than_may_run(unusual: TinyModel) -> None:
    """Newcomers go ahead of prompts half done, so that without states more are within than a step serves."""
    most = {}
    for family in ("llama", "lfm2"):
        engine = Engine(unusual(family), max_batch_tokens=4, unverified_models=True)
        for id in range(12):
            engine.submit(id, random_prompt(30 - 2 * id), newcomer=True, max_new_tokens=4)
            engine.turn()
        engine.finish(range(12))
        assert engine.info.max_running == 4
        most[family] = max(running for running, _ in engine.loads)
    assert most["lfm2"] <= 4 < most["llama"]
