"""The text model of a checkpoint: alone in it, or beside parts for images and sound, which are not loaded.

A wrapper's own code runs, with the names that its weights have, but none of its modules that text doesn't pass through:
they are taken away before weights are read.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from container.engine.worker.refusal import ModelRefused

_NO_BATCH = "it can't run in continuous batches"


def check_kind(config: PretrainedConfig, *, own_code: bool) -> None:
    """Raise ModelRefused for a configuration of something else than a model that continues texts."""
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        raise ModelRefused(
            f"model type {config.model_type} is an encoder-decoder, whose decoder attends to something else than its "
            f"own tokens: {_NO_BATCH}. Take a decoder-only model"
        )
    if getattr(text, "use_bidirectional_attention", False) not in (False, None, "vision"):  # "vision": in images alone
        raise ModelRefused(f"this {text.model_type} model attends in both directions: {_NO_BATCH}")
    if not own_code and _code_for(config) is None:
        raise ModelRefused(
            f"transformers has no code that generates text with model type {config.model_type}. Take a causal "
            "language model, or one of images and text"
        )


def load_text_model(model_dir: str, config: PretrainedConfig, *, own_code: bool, **kwargs: Any) -> Any:
    """Return what `from_pretrained` does, model and loading report. Raises what it raises."""
    code = None if own_code else _code_for(config)
    is_plain = config.get_text_config() is config and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if code is None or code.config_class is not type(config) or is_plain:
        return AutoModelForCausalLM.from_pretrained(model_dir, trust_remote_code=own_code, **kwargs)
    loaded: Any = _text_alone(code).from_pretrained(model_dir, config=config, **kwargs)
    loaded[0].__class__ = code
    return loaded


def _code_for(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """Return the class that generates text with a model of this configuration."""
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    return None


def _text_alone(code: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Derive a class whose models have no modules but the text model's: none other is there to be loaded."""

    def __init__(self: Any, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        code.__init__(self, config, *args, **kwargs)
        _remove_other_modules(self)
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    return type(code.__name__, (code,), {"__init__": __init__, "__module__": code.__module__})


def _remove_other_modules(model: Any) -> None:
    """Put None in the place of each module that neither is nor holds the decoder, its embeddings or its output."""
    decoder: torch.nn.Module = model.get_decoder()
    if decoder is model or decoder is model.base_model:
        return  # its code doesn't tell text from the rest
    kept = {decoder, model.get_input_embeddings(), model.get_output_embeddings()} - {None}
    _keep_only(model, kept)


def _keep_only(module: torch.nn.Module, kept: set[Any]) -> None:
    for name, child in list(module.named_children()):
        if child in kept:
            continue
        if kept.isdisjoint(child.modules()):
            setattr(module, name, None)
        else:
            _keep_only(child, kept)
