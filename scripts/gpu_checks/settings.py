"""Sizes of the checks: for a GPU, and so small that a CPU does them in a minute."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_LLAMA: dict[str, Any] = {"max_position_embeddings": 8192, "tie_word_embeddings": False}
_OF_1B: dict[str, Any] = _LLAMA | {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
_OF_8B: dict[str, Any] = _OF_1B | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "head_dim": 128,
}
_TINY: dict[str, Any] = _LLAMA | {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
SHAPES = {"1b": _OF_1B, "8b": _OF_8B, "tiny": _TINY}
"""Configurations of Llama models. Those of 1B and 8B have the layers of Llama 3.2 1B and Llama 3.1 8B."""


class NotHere(Exception):
    """This machine can't run a check. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes and places, the same for all checks of a run."""

    device: str
    folder: str
    """Folder for the models that are made."""
    dtype: str = "bfloat16"
    """Type of the models that are measured."""
    shapes: tuple[str, ...] = ("1b", "8b")
    families: tuple[str, ...] = ("llama", "gemma3_text", "qwen3_moe", "mistral")
    """Model types whose tokens are compared with those of `generate`."""
    rows: tuple[int, ...] = (1, 64)
    """Prompts at once in the measures."""
    prompt_tokens: int = 128
    new_tokens: int = 128
    compared_rows: int = 12
    compared_tokens: int = 32
    server: dict[str, str] = field(default_factory=dict)
    """Environment variables of the servers."""

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")


def for_gpu(folder: str) -> Settings:
    return Settings(device="cuda:0", folder=folder, server={"LONGHAUL_DEVICE": "cuda:0"})


def for_cpu(folder: str) -> Settings:
    return Settings(
        device="cpu",
        folder=folder,
        dtype="float32",
        shapes=("tiny",),
        families=("llama", "gemma3_text"),
        rows=(1, 4),
        prompt_tokens=16,
        new_tokens=24,
        compared_rows=4,
        compared_tokens=16,
        server={"LONGHAUL_DEVICE": "cpu", "LONGHAUL_THREADS": "1"},
    )
