from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from container.engine.messages import EngineConfig
from container.engine.worker.model import load
from container.engine.worker.refusal import ModelRefused
from testing.tiny_models import TinyModel, save_tiny_family


def llama(directory: Path, shard_size: str = "1GB") -> Path:
    return Path(save_tiny_family(directory, "llama", shard_size=shard_size))


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


def break_index(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    (directory / "model.safetensors.index.json").write_text("{}")


GPTQ = {"quant_method": "gptq", "bits": 4}
REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has no weights"),
    "pickle": (only_pickle, "LONGHAUL_ALLOW_PICKLE"),
    "a missing weight": (lose_a_weight, "model.norm.weight"),
    "an unsupported type": (lambda d: AutoConfig.for_model("bloom").save_pretrained(d), "bloom"),
    "a mask of its own": (lambda d: change_config(d, model_type="doge"), "doge"),
    "code of its own": (lambda d: change_config(d, model_type="own", auto_map={"AutoConfig": "x.Y"}), "TRUST_REMOTE"),
    "broken config": (lambda d: (d / "config.json").write_text("{"), "config"),
    "a config that fits nothing": (lambda d: change_config(d, num_attention_heads=5), "not a multiple"),
    "a Git LFS pointer": (lambda d: (d / "model.safetensors").write_text("version https://git-lfs"), "can't be loaded"),
    "weights of another shape": (lambda d: change_config(d, vocab_size=99), r"\[307, 64\] instead of \[99, 64\]"),
    "a library that is not there": (
        lambda d: change_config(d, quantization_config=GPTQ),
        "can't be loaded: ImportError",
    ),
    "an encoder": (lambda d: save_tiny_family(d, "gemma3_text", use_bidirectional_attention=True), "both directions"),
    "images beside a text model that is not supported": (
        lambda d: change_config(d, model_type="llava", text_config={"model_type": "bloom"}),
        "model type bloom is not supported: the code of BloomForCausalLM fixes its attention function",
    ),
    "an encoder-decoder": (lambda d: AutoConfig.for_model("bart").save_pretrained(d), "is an encoder-decoder"),
    "no text model": (lambda d: AutoConfig.for_model("vit").save_pretrained(d), "no code that generates text"),
    "a broken index": (break_index, "not an index of weights"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_unservable_model_is_refused_with_reason(tmp_path: Path, name: str) -> None:
    spoil, reason = REFUSALS[name]
    spoil(llama(tmp_path))
    with pytest.raises(ModelRefused, match=reason):
        load(EngineConfig(model_dir=str(tmp_path), threads=1))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_model_len": 9999}, "the model holds 512 tokens"),
        ({"device": "cuda:7"}, "sees 0 CUDA devices"),
        ({"device": "mps"}, "expected cpu, cuda or cuda:N"),
        ({"device": "gpu"}, "expected cpu, cuda or cuda:N"),
    ],
)
def test_impossible_setting_is_refused(tmp_path: Path, settings: dict[str, object], reason: str) -> None:
    if "device" in settings and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelRefused, match=reason):
        load(EngineConfig(model_dir=str(llama(tmp_path)), threads=1, **settings))  # type: ignore[arg-type]


def test_pickle_weights_load_where_allowed(tmp_path: Path) -> None:
    only_pickle(llama(tmp_path))
    assert load(EngineConfig(model_dir=str(tmp_path), threads=1, allow_pickle=True)).model is not None


def test_missing_shard_is_named(tmp_path: Path) -> None:
    llama(tmp_path, shard_size="100KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load(EngineConfig(model_dir=str(tmp_path), threads=1)).model is not None
    shards[-1].unlink()
    with pytest.raises(ModelRefused, match=shards[-1].name):
        load(EngineConfig(model_dir=str(tmp_path), threads=1))


def test_cpu_loads_float32_with_models_own_length(tmp_path: Path) -> None:
    loaded = load(EngineConfig(model_dir=str(llama(tmp_path)), threads=1, device="cpu"))
    assert (loaded.dtype, loaded.max_model_len) == (torch.float32, 512)
    assert loaded.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, dimension, bytes


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 128,
}


def test_longrope_model_is_limited_to_original_length(tmp_path: Path) -> None:
    save_tiny_family(tmp_path, "phi3", rope_parameters=LONGROPE, original_max_position_embeddings=128)
    assert load(EngineConfig(model_dir=str(tmp_path), threads=1)).max_model_len == 128
    with pytest.raises(ModelRefused, match="holds 128 tokens in batches: beyond that, its longrope scaling"):
        load(EngineConfig(model_dir=str(tmp_path), threads=1, max_model_len=129))


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 512}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("rope", "wanted", "reason"),
    [
        ({}, 513, r"holds 512 tokens \(its max_position_embeddings\)"),
        (YARN, 2049, r"holds 2048 tokens \(512 times the yarn scaling's factor of 4\)"),
        (DYNAMIC, 513, "holds 512 tokens in batches: beyond that, its dynamic scaling depends on the longest"),
    ],
    ids=["none", "yarn", "dynamic"],
)
def test_length_beyond_models_is_refused(tmp_path: Path, rope: dict[str, object], wanted: int, reason: str) -> None:
    save_tiny_family(tmp_path, "llama", **({"rope_parameters": rope} if rope else {}))
    with pytest.raises(ModelRefused, match=f"LONGHAUL_MAX_MODEL_LEN is {wanted}; the model {reason}"):
        load(EngineConfig(model_dir=str(tmp_path), threads=1, max_model_len=wanted))
    assert load(EngineConfig(model_dir=str(tmp_path), threads=1, max_model_len=wanted - 1)).max_model_len == wanted - 1


def test_code_for_known_type_is_ignored(tmp_path: Path) -> None:
    """microsoft/Phi-3-mini-4k-instruct is such a model."""
    change_config(llama(tmp_path), auto_map={"AutoModelForCausalLM": "no_such_file.Model"})
    for trust in (False, True):
        loaded = load(EngineConfig(model_dir=str(tmp_path), threads=1, trust_remote_code=trust))
        assert type(loaded.model).__module__.startswith("transformers.models.llama")


def test_index_beside_whole_weights_is_ignored(tmp_path: Path) -> None:
    (llama(tmp_path) / "model.safetensors.index.json").write_text('{"weight_map": {"x": "lost.safetensors"}}')
    assert load(EngineConfig(model_dir=str(tmp_path), threads=1)).model is not None


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers if not {attention} else ():
            layer.self_attn.forward = lambda hidden_states, **kwargs: (hidden_states, None)
"""


def own_model(directory: Path, *, attention: bool) -> EngineConfig:
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change_config(llama(directory), model_type="own", auto_map=auto_map)
    (directory / "own.py").write_text(OWN_CODE.format(attention=attention))
    return EngineConfig(model_dir=str(directory), threads=1, trust_remote_code=True)


def test_trusted_code_has_to_be_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded = load(own_model(tmp_path / "trusted_own", attention=True))
    assert (type(loaded.model).__name__, loaded.config.model_type) == ("OwnModel", "own")
    assert not loaded.is_measured


def test_trusted_code_with_own_attention_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ModelRefused, match="fixes its attention function"):
        load(own_model(tmp_path / "stubborn_own", attention=False))


def test_attention_chosen_by_name_is_refused(tiny: TinyModel) -> None:
    with pytest.raises(ModelRefused, match="fixes its attention function"):
        load(EngineConfig(model_dir=tiny("falcon"), threads=1, unverified_models=True))
