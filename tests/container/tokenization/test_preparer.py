from __future__ import annotations

from typing import Any

import pytest

from container.core import Item, Parameters, Text
from container.engine.sequence import Sampling
from container.errors import InvalidRequest
from container.tokenization import preparer
from container.tokenization.model_defaults import ModelDefaults


def item(*, sample_by_default: bool = False, **given: Any) -> Item:
    return Item(
        prompt=Text(text="a"),
        parameters=Parameters(**given),
        sample_by_default=sample_by_default,
        param="prompt",
        names={"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"},
    )


RANDOM_SEED = 77


def resolve(
    defaults: ModelDefaults | None = None, asked: Item | None = None, *, prompt_tokens: int = 10
) -> tuple[Sampling, ...]:
    return preparer.resolve(
        asked or item(),
        defaults or ModelDefaults(),
        prompt_tokens=prompt_tokens,
        limit_tokens=100,
        default_max_new_tokens=50,
        random_seed=RANDOM_SEED,
    )


def test_new_tokens_default_to_room_or_setting() -> None:
    assert resolve(prompt_tokens=10)[0].max_new_tokens == 50
    assert resolve(prompt_tokens=70)[0].max_new_tokens == 30
    assert resolve(asked=item(max_new_tokens=90))[0].max_new_tokens == 90


def test_too_many_new_tokens_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(asked=item(max_new_tokens=91))
    assert caught.value.message == (
        "max_tokens is 91; beside the prompt's 10 tokens the model holds 90 more (100 in all)"
    )
    assert (caught.value.param, caught.value.code) == ("max_tokens", "context_length_exceeded")


def test_prompt_filling_the_context_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prompt has 100 tokens; the model holds 100"):
        resolve(prompt_tokens=100)


def test_min_new_tokens_may_not_exceed_limit() -> None:
    assert resolve(asked=item(min_new_tokens=50))[0].min_new_tokens == 50
    with pytest.raises(InvalidRequest, match="min_tokens is 51; at most 50 new tokens are generated") as caught:
        resolve(asked=item(min_new_tokens=51))
    assert caught.value.param == "min_tokens"


MODEL = ModelDefaults(do_sample=True, temperature=0.6, top_k=20, top_p=0.95)
QUIET = ModelDefaults(temperature=0.6, top_k=20)


@pytest.mark.parametrize(
    ("defaults", "asked", "temperature"),
    [
        (ModelDefaults(), item(), 0.0),
        (ModelDefaults(), item(sample_by_default=True), 1.0),
        (MODEL, item(), 0.6),
        (MODEL, item(sample_by_default=True), 0.6),
        (ModelDefaults(do_sample=False), item(sample_by_default=True), 0.0),
        (QUIET, item(), 0.0),
        (QUIET, item(do_sample=True), 0.6),
        (QUIET, item(sample_by_default=True), 0.6),
        (MODEL, item(do_sample=False), 0.0),
        (MODEL, item(do_sample=False, temperature=0.9), 0.0),
        (MODEL, item(temperature=0.0), 0.0),
        (MODEL, item(temperature=1e-9), 0.0),
        (MODEL, item(do_sample=True, temperature=0.0), 0.0),
        (MODEL, item(temperature=0.9), 0.9),
        (ModelDefaults(), item(temperature=0.9), 0.9),
        (ModelDefaults(), item(top_k=5), 1.0),
        (ModelDefaults(), item(top_p=0.5), 1.0),
        (ModelDefaults(), item(min_p=0.5), 1.0),
        (ModelDefaults(), item(repetition_penalty=1.5, presence_penalty=1.0, logit_bias=((5, 1.0),)), 0.0),
        (ModelDefaults(repetition_penalty=1.5, min_p=0.1), item(), 0.0),
        (ModelDefaults(), item(seed=5), 0.0),
        (ModelDefaults(), item(do_sample=True), 1.0),
    ],
)
def test_request_wins_over_model_over_dialect(defaults: ModelDefaults, asked: Item, temperature: float) -> None:
    assert resolve(defaults, asked)[0].temperature == temperature


def test_sampling_values_fall_back_to_off() -> None:
    (sampling,) = resolve(MODEL, item(top_p=0.5))
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.6, 20, 0.5)
    (sampling,) = resolve(ModelDefaults(), item(do_sample=True))
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (1.0, 0, 1.0, 0.0)
    assert resolve(MODEL, item(top_k=0))[0].top_k == 0


def test_min_p_counts_only_when_sampling() -> None:
    model = ModelDefaults(do_sample=True, min_p=0.1)
    assert resolve(model)[0].min_p == 0.1
    assert resolve(model, item(min_p=0.0))[0].min_p == 0.0
    assert resolve(model, item(do_sample=False))[0].min_p == 0.0


def test_model_repetition_penalty_is_default() -> None:
    model = ModelDefaults(repetition_penalty=1.1)
    assert resolve(model)[0].repetition_penalty == 1.1
    assert resolve(model, item(repetition_penalty=1.0))[0].repetition_penalty == 1.0
    assert resolve(ModelDefaults())[0].repetition_penalty == 1.0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_penalties_and_biases_count_when_greedy(temperature: float) -> None:
    changes: dict[str, Any] = {
        "repetition_penalty": 1.2,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.5,
        "logit_bias": ((5, -100.0), (6, 1.5)),
        "logprobs": 3,
    }
    for sampling in resolve(asked=item(temperature=temperature, n=2, **changes)):
        assert {name: getattr(sampling, name) for name in changes} == changes
        assert sampling.temperature == temperature


def test_each_choice_has_the_next_seed() -> None:
    choices = resolve(asked=item(temperature=1.0, seed=2**64 - 1, n=3))
    assert [sampling.seed for sampling in choices] == [2**64 - 1, 0, 1]


def test_random_seed_replaces_missing_seed() -> None:
    assert [sampling.seed for sampling in resolve(asked=item(temperature=1.0, n=2))] == [RANDOM_SEED, RANDOM_SEED + 1]
    assert resolve(asked=item(temperature=1.0, seed=5))[0].seed == 5


def test_greedy_choices_are_alike() -> None:
    assert resolve(MODEL, item(do_sample=False, seed=5, n=2)) == (Sampling(max_new_tokens=50),) * 2


def test_end_tokens_stop_unless_ignored() -> None:
    model = ModelDefaults(eos_token_ids=(2, 3))
    assert resolve(model, item(stop_token_ids=(3, 9)))[0].stop_token_ids == (2, 3, 9)
    assert resolve(model, item(stop_token_ids=(3, 9), ignore_eos=True))[0].stop_token_ids == (3, 9)


def test_stop_token_outside_vocabulary_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="stop_token_ids: token ids must be below 50"):
        resolve(ModelDefaults(vocab_size=50), item(stop_token_ids=(50,)))


def test_bias_outside_vocabulary_is_refused() -> None:
    model = ModelDefaults(vocab_size=50)
    assert resolve(model, item(logit_bias=((49, 1.0),)))[0].logit_bias == ((49, 1.0),)
    with pytest.raises(InvalidRequest, match="logit_bias: token ids must be below 50") as caught:
        resolve(model, item(logit_bias=((49, 1.0), (50, 1.0))))
    assert caught.value.param == "logit_bias"
