"""Models of a given shape with random weights, written straight to safetensors, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from .settings import SHAPES, Settings

SHARD_BYTES = 2 << 30
_SPREAD = 0.02


def folder_of(settings: Settings, shape: str) -> Path:
    return Path(settings.folder) / f"model-{shape}"


def run(settings: Settings, shape: str) -> dict[str, Any]:
    written = make(folder_of(settings, shape), shape, settings.dtype, settings.device)
    return {"weights_gb": round(written / 1e9, 2)}


def make(folder: Path, shape: str, dtype: str, device: str) -> int:
    """Write a model and a tokenizer of as many words as it has tokens. Returns the weights' bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    no_token: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = LlamaConfig(dtype=dtype, architectures=["LlamaForCausalLM"], **no_token, **SHAPES[shape])
    config.save_pretrained(folder)
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    written = _write_weights(folder, empty.state_dict(), getattr(torch, dtype), device)
    save_words(folder, config.vocab_size)
    return written


def _write_weights(folder: Path, shapes: dict[str, torch.Tensor], dtype: torch.dtype, device: str) -> int:
    """Fill and write one shard after the other, with their index."""
    generator = torch.Generator(device).manual_seed(1)
    shards: list[dict[str, torch.Tensor]] = [{}]
    places: dict[str, int] = {}
    size = written = 0

    def flush() -> None:
        save_file(shards[-1], folder / f"model-{len(shards):05}.safetensors", metadata={"format": "pt"})
        shards[-1] = {}

    for name, like in shapes.items():
        bytes_ = like.numel() * dtype.itemsize
        if size + bytes_ > SHARD_BYTES and shards[-1]:
            flush()
            shards.append({})
            size = 0
        weights = torch.ones(like.shape, dtype=dtype, device=device)
        if like.dim() > 1:
            weights.normal_(0.0, _SPREAD, generator=generator)
        shards[-1][name] = weights.cpu()
        places[name] = len(shards)
        size, written = size + bytes_, written + bytes_
    flush()
    weight_map = {name: f"model-{place:05}.safetensors" for name, place in places.items()}
    index = {"metadata": {"total_size": written}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return written


def save_words(folder: Path, count: int) -> None:
    """Save a tokenizer whose token N is the word `wN`, so that a text has as many tokens as words."""
    words = {f"w{number}": number for number in range(count)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make_tokenizer: Any = PreTrainedTokenizerFast
    make_tokenizer(tokenizer_object=backend, unk_token="w0").save_pretrained(folder)


def text_of(ids: list[int]) -> str:
    return " ".join(f"w{id}" for id in ids)
