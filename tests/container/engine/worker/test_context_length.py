from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from container.engine.worker.context_length import ContextLength, context_length

YARN = {"type": "yarn", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}

LENGTHS: dict[str, tuple[str, dict[str, Any], int]] = {
    "no scaling": ("llama", {"max_position_embeddings": 2048}, 2048),
    "learned positions": ("gpt2", {"n_positions": 1024}, 1024),
    "yarn of Qwen 2.5's README": (
        "qwen2",
        {"max_position_embeddings": 32768, "rope_scaling": YARN | {"original_max_position_embeddings": 32768}},
        131072,
    ),
    "yarn without the original": ("qwen2", {"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
    "yarn of Qwen 3's README": (
        "qwen3",
        {"max_position_embeddings": 40960, "rope_scaling": YARN | {"original_max_position_embeddings": 32768}},
        131072,
    ),
    "yarn already counted": (
        "llama",
        {
            "max_position_embeddings": 163840,
            "rope_scaling": YARN | {"factor": 40, "original_max_position_embeddings": 4096},
        },
        163840,
    ),
    "yarn in the newer form": (
        "llama",
        {"max_position_embeddings": 1024, "rope_parameters": {"rope_type": "yarn", "factor": 2.5, "rope_theta": 1e4}},
        2560,
    ),
    "llama3": ("llama", {"max_position_embeddings": 131072, "rope_scaling": LLAMA3}, 131072),
    "linear": (
        "llama",
        {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}},
        16384,
    ),
    "linear in some layers": (
        "gemma3_text",
        {"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        131072,
    ),
    "dynamic": (
        "llama",
        {"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        2048,
    ),
    "longrope": (
        "phi3",
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": LONGROPE,
        },
        4096,
    ),
}


def length_of(name: str) -> ContextLength:
    model_type, fields, _ = LENGTHS[name]
    return context_length(AutoConfig.for_model(model_type, **fields))


@pytest.mark.parametrize("name", LENGTHS)
def test_length_is_what_configuration_reaches(name: str) -> None:
    assert length_of(name).tokens == LENGTHS[name][2]


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_batch_dependent_scaling_cuts_length(kind: str) -> None:
    length = length_of(kind)
    assert length.is_cut
    assert length.reason == f"beyond that, its {kind} scaling depends on the longest sequence of a batch"


def test_scaled_length_says_why() -> None:
    assert length_of("yarn of Qwen 3's README").reason == "32768 times the yarn scaling's factor of 4"
    assert length_of("linear").reason == "4096 times the linear scaling's factor of 4"


def test_model_without_positions_tells_no_length() -> None:
    assert context_length(AutoConfig.for_model("bloom")) == ContextLength(None)
