from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model
from transformers import AutoConfig

from container.engine.messages import EngineConfig
from container.engine.model import ModelRefused, load


def llama(directory: Path, shard_size: str = "1GB") -> Path:
    return Path(save_tiny_model(directory, "llama", shard_size=shard_size))


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def only_pickle(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def lose_a_weight(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "holds no config.json"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
    "pickle": (only_pickle, "LONGHAUL_ALLOW_PICKLE"),
    "a missing weight": (lose_a_weight, "model.norm.weight"),
    "an unsupported type": (lambda d: AutoConfig.for_model("bloom").save_pretrained(d), "bloom"),
    "attention sinks": (lambda d: change_config(d, model_type="gpt_oss"), "gpt_oss"),
    "code of its own": (lambda d: change_config(d, model_type="own", auto_map={"AutoConfig": "x.Y"}), "TRUST_REMOTE"),
    "broken config": (lambda d: (d / "config.json").write_text("{"), "config"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_model_that_can_not_be_served_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    spoil, reason = REFUSALS[name]
    spoil(llama(tmp_path))
    with pytest.raises(ModelRefused, match=reason):
        load(EngineConfig(model_dir=str(tmp_path), threads=1))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"max_model_len": 9999}, "the model holds 512 tokens"), ({"device": "cuda:7"}, "sees 0 CUDA devices")],
)
def test_a_setting_that_can_not_be_met_is_refused(tmp_path: Path, settings: dict[str, object], reason: str) -> None:
    if "device" in settings and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelRefused, match=reason):
        load(EngineConfig(model_dir=str(llama(tmp_path)), threads=1, **settings))  # type: ignore[arg-type]


def test_pickle_weights_load_where_allowed(tmp_path: Path) -> None:
    only_pickle(llama(tmp_path))
    assert load(EngineConfig(model_dir=str(tmp_path), threads=1, allow_pickle=True)).model is not None


def test_shards_load_and_a_missing_one_is_named(tmp_path: Path) -> None:
    llama(tmp_path, shard_size="100KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load(EngineConfig(model_dir=str(tmp_path), threads=1)).model is not None
    shards[-1].unlink()
    with pytest.raises(ModelRefused, match=shards[-1].name):
        load(EngineConfig(model_dir=str(tmp_path), threads=1))


def test_on_a_cpu_the_type_is_float32_and_the_length_is_the_models(tmp_path: Path) -> None:
    loaded = load(EngineConfig(model_dir=str(llama(tmp_path)), threads=1, device="cpu"))
    assert (loaded.dtype, loaded.max_model_len) == (torch.float32, 512)
    assert loaded.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, dimension, bytes
