"""Copies of tiny models in which some weights are not numbers, or so large that something overflows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]


def save_poisoned(model_dir: str | Path, directory: Path, poison: Callable[[Weights], None]) -> str:
    """Copy a model in one file into the directory, with the weights that `poison` changes. Return the directory."""
    shutil.copytree(model_dir, directory, dirs_exist_ok=True)
    file = directory / "model.safetensors"
    weights = load_file(file)
    poison(weights)
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})
    return str(directory)


def poison_all(name: str, value: float) -> Callable[[Weights], None]:
    """Return a change that sets a whole tensor to one value, with the signs that its weights have."""

    def poison(weights: Weights) -> None:
        weights[name] = torch.copysign(torch.full_like(weights[name], value), weights[name])

    return poison


def poison_rows(name: str, rows: list[int], value: float = float("nan")) -> Callable[[Weights], None]:
    """Return a change that sets rows of a tensor to one value: of an embedding, those of single tokens."""

    def poison(weights: Weights) -> None:
        weights[name][rows] = value

    return poison
