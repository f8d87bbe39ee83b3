"""Tiny random models of every type that the installed transformers can generate text with.

Each has a few layers, at least one of each kind that its type can have, and weights of which every one matters.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from testing.model_recipes import DROP, FIELDS, LAYERS, RECIPES, VISION_FIELDS, VOCABULARY

CAUSAL_TYPES: tuple[str, ...] = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
"""Types that AutoModelForCausalLM maps."""
WRAPPER_TYPES: tuple[str, ...] = tuple(
    sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys() - MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys())
)
"""Types that only AutoModelForImageTextToText maps."""

MAX_PARAMETERS = 60_000_000
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
_DELICATE = ("A_log", "dt_bias", ".D", "dt_proj", "inv_freq", "lambda", "recurrent_param", "slope", "decay")
"""Parts of the names of weights that a recurrence raises to powers: large changes would end in zeros or infinity."""


def tiny_checkpoint(auto: Any, model_type: str, directory: str | Path, *, seed: int = 1, **changes: Any) -> str:
    """Save a tiny random float32 model, the same for the same arguments, and return its directory.

    `auto` is the class that makes it, such as AutoModelForCausalLM; `changes` are fields of its configuration. Raises
    ValueError where the model is not small: then a recipe is missing. Other errors come from the type's own code.
    """
    torch.manual_seed(0)
    model = auto.from_config(tiny_config(model_type, **changes), dtype=torch.float32, attn_implementation="eager")
    parameters = sum(weight.numel() for weight in model.parameters())
    if parameters > MAX_PARAMETERS:
        raise ValueError(f"{model_type} is not small: {parameters} parameters")
    stir_weights(model, seed)
    model.save_pretrained(directory)
    return str(directory)


def tiny_config(model_type: str, **changes: Any) -> Any:
    """Make a type's configuration with tiny sizes; a wrapper's other parts get them too."""
    config_class: Any = CONFIG_MAPPING[model_type]
    recipe = {**RECIPES.get(model_type, {}), **changes}
    names = getattr(config_class, "sub_configs", None) or {}
    if "text_config" not in names:
        return config_class(**_tiny_fields(config_class, recipe))
    default, parts = config_class(), {}
    for name in names:
        part = getattr(default, name, None)
        if part is None:
            continue
        fields = {**_tiny_fields(type(part), RECIPES.get(part.model_type, {})), "model_type": part.model_type}
        if name != "text_config":
            fields |= {field: value for field, value in VISION_FIELDS.items() if hasattr(part, field)}
        parts[name] = fields
    return config_class(**{**parts, **recipe})


def _tiny_fields(config_class: Any, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the class's own fields with tiny values, and one layer of each kind, in turns."""
    try:
        fields = config_class().to_dict()
    except Exception:  # the defaults of some are not valid
        fields = dict.fromkeys(config_class.__dataclass_fields__, 0)
    tiny = {
        name: FIELDS[name]
        for name, value in fields.items()
        if name in FIELDS and (value is not None or name in _TOKENS)
    }
    if "kv_lora_rank" in tiny:  # multi-head latent attention
        tiny["num_key_value_heads"] = tiny["num_attention_heads"]
        if fields.get("head_dim") in (fields.get("qk_rope_head_dim"), None):
            tiny.pop("head_dim", None)
    layers = recipe.get("num_hidden_layers", tiny.get("num_hidden_layers", LAYERS))
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(fields.get(name), list) and fields[name] and isinstance(layers, int):
            kinds = list(dict.fromkeys(fields[name]))
            tiny[name] = [kinds[layer % len(kinds)] for layer in range(layers)]
    if "is_decoder" in fields:
        tiny["is_decoder"] = True
    return {name: value for name, value in {**tiny, **recipe}.items() if value is not DROP}


def stir_weights(model: Any, seed: int = 1) -> None:
    """Draw weights of which every one matters: none stays at the zero or one that it is initialized to."""
    noise = torch.Generator().manual_seed(seed)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head is not None and table is not None and getattr(head, "weight", None) is getattr(table, "weight", None)
    for name, weight in model.named_parameters():
        drawn = torch.randn(weight.shape, generator=noise).to(weight.dtype)
        with torch.no_grad():
            if any(part in name for part in _DELICATE):
                weight += 0.05 * drawn
            elif weight.dim() < 2:
                weight += 0.3 * drawn
            elif "embed" in name or "wte" in name:
                weight.copy_(drawn * (0.1 if is_tied else 1.0))
            else:
                inputs = weight.shape[-1] if weight.dim() != 3 or "conv" in name else min(weight.shape[-2:])
                weight.copy_(drawn * 1.6 / max(16, inputs) ** 0.5)
    for name, buffer in model.named_buffers():
        if "bias" in name and buffer.is_floating_point():  # corrects the scores of experts
            buffer += 0.1 * torch.randn(buffer.shape, generator=noise).to(buffer.dtype)


def zoo_prompts(seed: int, lengths: tuple[int, ...]) -> list[list[int]]:
    """Draw prompts of these lengths, without the ids of special tokens."""
    draw = random.Random(seed)
    return [[draw.randrange(6, VOCABULARY) for _ in range(length)] for length in lengths]
