"""Digests of models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from container.invocations.model_digest import model_digest


def test_model_digest_covers_all_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(bytes(1000))
    one, two = tmp_path / "one", tmp_path / "two"
    assert model_digest(str(one)) == model_digest(str(two))
    (one / ".cache").write_text("of no meaning")
    assert model_digest(str(one)) == model_digest(str(two))
    (one / "model.safetensors").write_bytes(bytes(999) + b"a")
    assert model_digest(str(one)) != model_digest(str(two))


@pytest.mark.parametrize("name", ["first", "second", "last"])
def test_model_digest_covers_every_large_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("container.invocations.model_digest._WHOLE_FILE_BYTES", 1 << 10)
    tensors = {"first": torch.zeros(100_000), "second": torch.zeros(3), "last": torch.zeros(50_000)}
    save_file(tensors, tmp_path / "model.safetensors")
    before = model_digest(str(tmp_path))
    save_file(tensors | {name: tensors[name] + 1}, tmp_path / "model.safetensors")
    assert model_digest(str(tmp_path)) != before


def test_model_digest_samples_other_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container.invocations.model_digest._WHOLE_FILE_BYTES", 1 << 20)
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(4 << 20))
    before = model_digest(str(tmp_path))
    path.write_bytes(bytes((4 << 20) - 1) + b"a")
    assert model_digest(str(tmp_path)) != before
    path.write_bytes(bytes((4 << 20) + 1))
    assert model_digest(str(tmp_path)) != before


def test_any_difference_changes_model_digest(tmp_path: Path) -> None:
    """A merged adapter changes a few matrices of a file but not its size, and the journal has the former's tokens."""
    digests = set()
    for byte in (b"\1", b"\2"):
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.truncate(256 << 20)
            file.seek(10 << 20)
            file.write(byte * (4 << 20))
        digests.add(model_digest(str(tmp_path)))
    assert len(digests) == 2
