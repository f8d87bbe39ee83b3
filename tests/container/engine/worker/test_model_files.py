"""Weights and configurations as people have them: saved by other tools, in other layouts, with other names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from container.engine.messages import EngineConfig
from container.engine.worker import model
from container.engine.worker.model import LoadedModel
from container.engine.worker.refusal import ModelRefused
from testing.exactness import Reference
from testing.tiny_models import random_prompt, save_tiny_family

PROMPT = random_prompt(9)


def load(directory: Path) -> LoadedModel:
    return model.load(EngineConfig(model_dir=str(directory), threads=1, device="cpu"))


def scores(directory: Path) -> torch.Tensor:
    """Return the scores of the next token, from weights as the engine holds them."""
    loaded = load(directory)
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        result: torch.Tensor = loaded.model(torch.tensor([PROMPT])).logits[0, -1]
    return result


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_weights(directory: Path, rename: Callable[[str], str | None]) -> None:
    """Give each weight another name; None leaves it out."""
    weights = load_file(directory / "model.safetensors")
    renamed = {new: weight for name, weight in weights.items() if (new := rename(name))}
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return Path(save_tiny_family(tmp_path / "tied", "llama", tie_word_embeddings=True))


def assert_same_scores(directory: Path, original: Path) -> None:
    torch.testing.assert_close(scores(directory), Reference(str(original)).scores(PROMPT))


def test_tied_model_needs_no_head(tied: Path) -> None:
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    assert_same_scores(tied, tied)


def test_weights_of_base_model_alone_load(tied: Path, tmp_path: Path) -> None:
    """Saved through AutoModel, their names have no `model.` before them."""
    base: Any = AutoModel.from_pretrained(tied)
    base.save_pretrained(tmp_path / "base")
    assert "layers.0.mlp.up_proj.weight" in load_file(tmp_path / "base" / "model.safetensors")
    assert_same_scores(tmp_path / "base", tied)


def test_missing_head_of_untied_model_is_named(tmp_path: Path) -> None:
    save_tiny_family(tmp_path, "llama")
    rename_weights(tmp_path, lambda name: None if name == "lm_head.weight" else name)
    with pytest.raises(ModelRefused, match=r"1 weights are missing, the first is lm_head\.weight"):
        load(tmp_path)


def test_shards_in_folder_load(tmp_path: Path) -> None:
    original = Path(save_tiny_family(tmp_path / "original", "llama"))
    sharded = Path(save_tiny_family(tmp_path / "sharded", "llama", shard_size="100KB"))
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (sharded / "weights").mkdir()
    for shard in set(content["weight_map"].values()):
        (sharded / shard).rename(sharded / "weights" / shard)
    content["weight_map"] = {name: f"weights/{shard}" for name, shard in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    assert_same_scores(sharded, original)


def test_snapshot_of_hubs_cache_loads(tied: Path, tmp_path: Path) -> None:
    """Its files are links to blobs without endings."""
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "0a1b", tmp_path / "cache" / "blobs"
    for directory in (snapshot, blobs):
        directory.mkdir(parents=True)
    for number, path in enumerate(sorted(tied.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert_same_scores(snapshot, tied)


def test_read_only_model_loads(tied: Path) -> None:
    for path in (*tied.iterdir(), tied):
        path.chmod(path.stat().st_mode & ~0o222)
    before = sorted(tied.iterdir())
    assert load(tied).max_model_len == 512 and sorted(tied.iterdir()) == before
    tied.chmod(0o755)


def test_model_without_generation_config_loads(tied: Path) -> None:
    (tied / "generation_config.json").unlink()
    assert load(tied).max_model_len == 512


@pytest.mark.parametrize("field", ["torch_dtype", "dtype"])
def test_gpu_takes_precision_of_checkpoint(field: str, tied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    content = json.loads((tied / "config.json").read_text())
    for name in ("torch_dtype", "dtype"):
        content.pop(name, None)
    (tied / "config.json").write_text(json.dumps(content | {field: "float16"}))
    config, _ = model._read_config(EngineConfig(model_dir=str(tied)))
    assert model._dtype(None, torch.device("cuda"), config) == torch.float16


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: b"\xef\xbb\xbf" + content, "is not JSON: Unexpected UTF-8 BOM"),
        (lambda content: b"// mine\n" + content, "is not JSON: Expecting value: line 1"),
        (lambda content: content.decode().encode("utf-16"), "is not JSON: .*can't decode"),
        (lambda content: b"[]", "is not a transformers model's: it has no model_type"),
        (lambda content: b"{}", "is not a transformers model's: it has no model_type"),
    ],
    ids=["byte order mark", "comment", "another encoding", "a list", "no model type"],
)
def test_unreadable_config_is_named(spoil: Callable[[bytes], bytes], reason: str, tied: Path) -> None:
    path = tied / "config.json"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ModelRefused, match=f"^{path} {reason}"):
        load(tied)
