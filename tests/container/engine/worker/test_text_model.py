from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from container.engine.messages import EngineConfig
from container.engine.worker.model import load
from container.engine.worker.refusal import ModelRefused
from testing.container.hand_turned_engine import Engine
from testing.model_zoo import tiny_checkpoint, zoo_prompts

WRAPPERS = (
    "aria",
    "aya_vision",
    "cohere_compass",
    "gemma3",
    "gemma4",
    "gemma4_unified",
    "internvl",
    "llama4",
    "llava",
    "mistral3",
    "mllama",
    "qwen2_5_vl",
    "qwen3_5",
    "qwen3_vl",
)
TOWERS: dict[str, dict[str, Any]] = {
    "gemma4": {
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "position_embedding_size": 16,
        }
    },
    "gemma4_unified": {"vision_config": {"mm_embed_dim": 32, "mm_posemb_size": 8, "output_proj_dims": 32}},
}
"""Parts for images that a type's tiny configuration lacks."""
NEW_TOKENS = 10
NOT_TEXT = ("vision", "visual", "image", "multi_modal", "patch", "audio")


def is_other(weight: str) -> bool:
    """Tell whether a weight is of a part for images or sound."""
    return any(part in weight for part in NOT_TEXT)


def generate(directory: str, prompts: list[list[int]]) -> tuple[list[list[int]], tuple[int, ...]]:
    """Return what the whole wrapper generates from each prompt alone, and its tokens that end texts."""
    whole: Any = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
        rows.append(whole.generate(input_ids=ids, do_sample=False, **options)[0, len(prompt) :].tolist())
    ends = whole.generation_config.eos_token_id
    return rows, tuple([ends] if isinstance(ends, int) else ends or ())


@pytest.mark.parametrize("model_type", WRAPPERS)
def test_wrapper_generates_text_without_vision_weights(tmp_path: Path, model_type: str) -> None:
    directory = tiny_checkpoint(AutoModelForImageTextToText, model_type, tmp_path, **TOWERS.get(model_type, {}))
    assert any(is_other(name) for name in load_file(tmp_path / "model.safetensors"))
    prompts = zoo_prompts(5, (3, 17, 41, 64))
    expected, ends = generate(directory, prompts)
    engine = Engine(directory, max_batch_tokens=40, max_model_len=512, unverified_models=True)
    got = engine.generate(prompts, max_new_tokens=NEW_TOKENS, stop_token_ids=ends)
    assert got == expected
    model: Any = engine.batch.model
    weights = dict(model.named_parameters())
    assert not [name for name in weights if is_other(name)]
    assert not [name for name, weight in weights.items() if weight.is_meta]


def test_wrapper_without_text_weight_is_refused(tmp_path: Path) -> None:
    file = Path(tiny_checkpoint(AutoModelForImageTextToText, "llava", tmp_path), "model.safetensors")
    weights = load_file(file)
    lost = next(name for name in weights if "language_model" in name and "layers.1.mlp.up_proj" in name)
    save_file({name: weight for name, weight in weights.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match=r"1 weights are missing, the first is .*layers\.1\.mlp\.up_proj"):
        load(EngineConfig(model_dir=str(tmp_path), threads=1))
