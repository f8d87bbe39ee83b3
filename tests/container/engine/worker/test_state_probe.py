"""Models whose state can't be followed are refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from container.engine.worker.state_probe import UnknownState, find_states
from testing.model_zoo import stir_weights, tiny_config


def make(model_type: str = "lfm2") -> PreTrainedModel:
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(tiny_config(model_type), attn_implementation="eager")
    stir_weights(model)
    return model


def change(model: PreTrainedModel, name: str, forward: Callable[..., Any]) -> None:
    """Have a module of the model run through `forward(plain, **arguments)`."""
    module: Any = model.get_submodule(name)
    plain, names = module.forward, ("hidden_states", "past_key_values", "attention_mask")
    module.forward = lambda *args, **kwargs: forward(plain, **dict(zip(names, args, strict=False)), **kwargs)


def test_state_that_never_goes_on_is_refused() -> None:
    model = make()

    def forget(plain: Callable[..., Any], **given: Any) -> Any:
        layer = given["past_key_values"].layers[0]
        layer.has_previous_state = dict.fromkeys(layer.has_previous_state, False)
        return plain(**given)

    change(model, "model.layers.0.conv", forget)
    with pytest.raises(UnknownState, match="conv does not go on from one piece of a prompt to the next"):
        find_states(model)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda result: result.mean(1, keepdim=True), "its result has no tokens"),
        (lambda result: result.repeat(result.shape[1], 1, 1), "its result has its tokens in no one place"),
    ],
    ids=["none", "twice"],
)
def test_result_without_one_place_is_refused(spoil: Callable[[torch.Tensor], torch.Tensor], reason: str) -> None:
    model = make()
    change(model, "model.layers.0.conv", lambda plain, **given: spoil(plain(**given)))
    change(model, "model.layers.0", lambda plain, **given: (plain(**given), given["hidden_states"])[1])
    with pytest.raises(UnknownState, match=reason):
        find_states(model)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("deepseek_v4", "a cache of its own kind"),
        ("minimax", "fails with the library's cache: ValueError: MiniMax"),
    ],
)
def test_cache_of_unknown_kind_is_refused(family: str, reason: str) -> None:
    with pytest.raises(UnknownState, match=reason):
        find_states(make(family))
