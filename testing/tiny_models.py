"""Tiny random models, saved as the engine loads them: of any supported family, or with a real model's tokenizer."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

VOCABULARY = 307
WINDOW = 20
"""Window of the sliding layers: shorter than a page of the cache, so that a prompt soon outgrows it."""

TinyModel = Callable[..., str]
"""Type of the fixture `tiny`, which returns the directory of a model of a family, with changes to its configuration."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    # The default of 0.02 gives logits so flat, and tied embeddings a model so sure of its last token, that greedy
    # decoding repeats one token and shows nothing.
    "initializer_range": 0.5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GROUPED = {"num_key_value_heads": 2}
_MIXED = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
}
_EXPERTS = {"moe_intermediate_size": 48, "num_experts_per_tok": 2}

FAMILIES: dict[str, dict[str, Any]] = {
    "cohere2": _GROUPED | _MIXED,
    "gemma2": _GROUPED | _MIXED | {"attn_logit_softcapping": 5.0},
    "gemma3_text": _GROUPED | _MIXED,
    "glm4": _GROUPED | {"head_dim": 16},
    "gpt2": {},
    "gpt_neox": {},
    "granite": _GROUPED | {"attention_multiplier": 0.1},
    "llama": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": WINDOW},
    "mixtral": _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": _GROUPED,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.5},
    "phi": _GROUPED,
    "phi3": _GROUPED,
    "qwen2": _GROUPED,
    "qwen2_moe": _GROUPED | _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 48},
    "qwen3": _GROUPED | {"head_dim": 16},
    "qwen3_moe": _GROUPED | _EXPERTS | {"head_dim": 16, "num_experts": 4},
    "smollm3": _GROUPED | {"num_hidden_layers": 4},
    "starcoder2": _GROUPED | {"sliding_window": WINDOW},
}

_SEEDS = {"cohere2": 2, "gemma3_text": 11, "qwen3": 2}
"""Seeds of the families that repeat themselves with seed 1."""


def save_tiny_family(directory: Path, model_type: str, *, shard_size: str = "1GB", **changes: Any) -> str:
    """Save a random model of a family, the same for the same arguments. Returns its directory."""
    config = AutoConfig.for_model(model_type, **(_COMMON | FAMILIES.get(model_type, {}) | changes))
    torch.manual_seed(_SEEDS.get(model_type, 1))
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(directory, max_shard_size=shard_size)
    return str(directory)


def random_prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(f"{length} {seed}").choices(range(VOCABULARY), k=length)


def save_tiny_model(directory: Path, tokenizer_dir: Path) -> None:
    """Save a random Llama with a real model's tokenizer: it writes nonsense, quickly."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer_dir / name, directory)
