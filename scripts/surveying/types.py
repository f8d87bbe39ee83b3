"""Types that are surveyed, and those of the sample."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from testing.model_zoo import CAUSAL_TYPES, WRAPPER_TYPES

NOT_TRIED = {
    "blt": "it reads bytes in patches that a second model makes",
    "fuyu": "it is made for images",
    "gemma4_assistant": "it drafts for another model, whose keys it needs",
    "gemma4_unified_assistant": "it drafts for another model, whose keys it needs",
    "git": "it is made for images",
    "moss_transcribe_diarize": "it is made for speech",
    "musicgen": "it makes music",
    "musicgen_melody": "it makes music",
    "phi4_multimodal": "no tiny model of it is made yet: its adapters for images and speech have fixed sizes",
    "reformer": "its positions have a fixed number",
}
"""Types of which no tiny model is tried, with the reason."""

SAMPLE = {
    "bart": "refused: the decoder of an encoder-decoder",
    "bloom": "refused: attention in its own code",
    "deepseek_v3": "latent attention: keys and values of two sizes, experts",
    "deepseek_v32": "an indexer picks the keys",
    "diffllama": "two attention calls a layer",
    "doge": "refused: a mask of its own",
    "gemma2": "soft caps",
    "gemma4_text": "two head sizes, shared keys",
    "gpt2": "learnt positions",
    "gpt_oss": "sinks",
    "granitemoehybrid": "Mamba-2 layers between attention, experts",
    "jamba": "Mamba-1 layers, which take single tokens",
    "lfm2": "short convolutions",
    "llama": "plain",
    "llama4_text": "chunks",
    "mamba2": "no attention",
    "mistral": "a window in all layers",
    "qwen3_5_text": "the delta rule",
    "rwkv": "refused: a state of its own kind",
    "stablelm": "the step's arguments don't reach attention",
}
"""Types of the sample, one of each kind, with what it stands for."""


def surveyed_types() -> tuple[str, ...]:
    """Return the types to try: those that AutoModelForCausalLM maps, and multimodal ones around a text model."""
    return tuple(name for name in (*CAUSAL_TYPES, *WRAPPER_TYPES) if name not in NOT_TRIED)


def is_causal(model_type: str) -> bool:
    return model_type in CAUSAL_TYPES


def auto_class(model_type: str) -> Any:
    """Return the class that makes a type's models and loads them for the reference."""
    return AutoModelForCausalLM if is_causal(model_type) else AutoModelForImageTextToText
