from __future__ import annotations

import json
from pathlib import Path

import pytest

from container.settings import BadSetting, Settings
from container.startup.model_source import find_model

CONFIG = json.dumps({"model_type": "llama"})


def lay_out(root: Path, **folders: str) -> Path:
    """Make folders with the given content of config.json; `__` is a slash in a keyword."""
    for folder, content in folders.items():
        path = root.joinpath(*folder.split("__"))
        path.mkdir(parents=True)
        (path / "config.json").write_text(content)
    return root


def find(sagemaker_dir: Path, **environ: str) -> str:
    return find_model(Settings.from_env(environ), str(sagemaker_dir))


def refusal(sagemaker_dir: Path, **environ: str) -> str:
    with pytest.raises(BadSetting) as error:
        find(sagemaker_dir, **environ)
    return str(error.value)


@pytest.mark.parametrize("folder", ["my-model", "a/b/my-model", "models--org--name/snapshots/0123abc"])
def test_only_model_in_folder_is_found(folder: str, tmp_path: Path) -> None:
    lay_out(tmp_path, **{folder.replace("/", "__"): CONFIG})
    assert find(tmp_path) == str(tmp_path / folder)


def test_set_directory_may_hold_folder(tmp_path: Path) -> None:
    lay_out(tmp_path, model=CONFIG)
    nowhere = tmp_path / "nowhere"
    assert find(nowhere, LONGHAUL_MODEL=str(tmp_path)) == str(tmp_path / "model")
    assert find(nowhere, HF_MODEL_ID=str(tmp_path)) == str(tmp_path / "model")


@pytest.mark.parametrize("foreign", ["code", "__MACOSX", ".git", "onnx", "original"])
def test_foreign_folder_is_no_model(foreign: str, tmp_path: Path) -> None:
    lay_out(tmp_path, model=CONFIG)
    lay_out(tmp_path / foreign, inner=CONFIG)
    assert find(tmp_path) == str(tmp_path / "model")


def test_checkpoints_inside_model_are_ignored(tmp_path: Path) -> None:
    lay_out(tmp_path, output=CONFIG, output__checkpoint500=CONFIG)
    assert find(tmp_path) == str(tmp_path / "output")


def test_config_of_other_library_is_ignored(tmp_path: Path) -> None:
    lay_out(tmp_path, model=CONFIG, pooling='{"pooling_mode": "mean"}')
    assert find(tmp_path) == str(tmp_path / "model")


def test_several_models_are_named(tmp_path: Path) -> None:
    lay_out(tmp_path, checkpoint500=CONFIG, checkpoint900=CONFIG)
    assert refusal(tmp_path) == f"{tmp_path} holds 2 models (checkpoint500, checkpoint900): name one in LONGHAUL_MODEL"
    assert find(tmp_path, LONGHAUL_MODEL=str(tmp_path / "checkpoint900")).endswith("checkpoint900")


def test_hub_id_goes_before_folder(tmp_path: Path) -> None:
    lay_out(tmp_path, model=CONFIG)
    assert find(tmp_path, HF_MODEL_ID="org/name") == "org/name"


def test_folder_marker_is_no_model(tmp_path: Path) -> None:
    lay_out(tmp_path, model=CONFIG)
    (tmp_path / "model_$folder$").touch()
    (tmp_path / "other").touch()
    assert find(tmp_path) == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (("adapter_config.json", "adapter_model.safetensors"), "adapter_config.json is an adapter's (PEFT)"),
        (("model_index.json",), "model_index.json is a diffusers pipeline's"),
        (("params.json", "consolidated.safetensors"), "their maker's own format"),
        (("model-Q4_K_M.gguf",), "model-Q4_K_M.gguf is weights for llama.cpp"),
        (("model.tar.gz",), "model.tar.gz is an archive, not unpacked"),
        (("model.safetensors",), "model.safetensors is there without a config.json"),
    ],
    ids=["adapter", "diffusers", "consolidated", "gguf", "archive", "weights alone"],
)
@pytest.mark.parametrize("folder", [".", "nested"])
def test_lookalike_of_model_is_named(files: tuple[str, ...], reason: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    for name in files:
        (tmp_path / folder / name).touch()
    assert reason in refusal(tmp_path)
    assert reason in refusal(tmp_path / "nowhere", LONGHAUL_MODEL=str(tmp_path))


def test_adapter_with_bases_config_is_named(tmp_path: Path) -> None:
    lay_out(tmp_path, model=CONFIG)
    model = tmp_path / "model"
    (model / "adapter_config.json").write_text("{}")
    assert "adapter_config.json is an adapter's (PEFT)" in refusal(tmp_path, LONGHAUL_MODEL=str(model))
    (model / "model.safetensors").touch()
    assert find(tmp_path, LONGHAUL_MODEL=str(model)) == str(model)


def test_model_linked_from_cache_is_found(tmp_path: Path) -> None:
    """A hub's cache keeps the files as blobs, and a snapshot is links to them."""
    blob = tmp_path / "models--org--name" / "blobs" / "0a1b"
    blob.parent.mkdir(parents=True)
    blob.write_text(CONFIG)
    snapshot = tmp_path / "models--org--name" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/0a1b")
    assert find(tmp_path) == str(snapshot)
