"""The model's folder in a directory: the directory itself, or the only folder below it that holds a model.

`tar czf model.tar.gz my-model/` and a mount of several models put it into a folder of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from container.settings import BadSetting

MODEL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.safetensors")

_MAX_DEPTH = 5
"""Most folders below each other in which a model is looked for: a hub's cache has it in the fourth."""
_MAX_FOLDERS = 1000
_MAX_NAMED = 5
_FOREIGN = frozenset({"code", "__MACOSX", "__pycache__", "lost+found", "onnx", "original", "openvino", "coreml"})
"""Folders that hold no model of ours: SageMaker's scripts, what macOS puts into archives, copies in other formats."""

_LOOKALIKES = {
    "adapter_config.json": "an adapter's (PEFT), which is a part of a model: merge it into its base and save the whole",
    "model_index.json": "a diffusers pipeline's",
    "modules.json": "a sentence-transformers model's",
    "params.json": "that of weights in their maker's own format: convert them to transformers'",
    "config.json": "not a transformers model's: it has no model_type",
}
"""Files that tell what a folder without a transformers model holds, the surest first."""
_LOOKALIKE_ENDINGS = {
    ".gguf": "weights for llama.cpp: take the model in safetensors",
    ".tar.gz": "an archive, not unpacked",
    ".tgz": "an archive, not unpacked",
    ".zip": "an archive, not unpacked",
    ".onnx": "a model in ONNX: take it in safetensors",
    ".safetensors": "there without a config.json: give the whole folder of the model",
}


def find_model_folder(directory: Path) -> Path | None:
    """Return the folder with the model, or None if there is nothing like one.

    Raises BadSetting if there are several, or something that only looks like one, or none that may be read.
    """
    if os.path.isfile(directory / "config.json"):
        return directory
    folders = list(islice(_folders(directory, _MAX_DEPTH), _MAX_FOLDERS))
    models = [folder for folder in folders if is_model_config(read_json(folder / "config.json"))]
    if len(models) == 1:
        return models[0]
    if models:
        raise BadSetting(f"{directory} holds {name_several(str(folder.relative_to(directory)) for folder in models)}")
    for folder in folders:
        if not os.access(folder, os.R_OK | os.X_OK):
            raise BadSetting(name_unreadable(folder, directory))
    for folder in (directory, *folders):
        if what := name_contents(path.name for path in _list(folder)):
            raise BadSetting(f"{folder} holds no model that can be served: {what}")
    return None


def check_readable(directory: Path) -> None:
    """Raise BadSetting for files that may not be read, which libraries would take for missing ones."""
    files = [path for path in _list(directory) if any(map(path.match, MODEL_FILES))]
    for path in (directory, *files):
        if path.is_symlink() and not path.exists():
            raise BadSetting(f"{path} is a link to {os.readlink(path)}, which is not there: give what it links to, too")
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise BadSetting(name_unreadable(path, directory))


def is_foreign(folder: str) -> bool:
    """Whether no model is looked for in a folder of that name."""
    return folder.startswith(".") or folder in _FOREIGN


def is_model_config(config: Any) -> bool:
    """Whether a config.json holds a transformers model's: diffusers, poolings and others have such a file, too."""
    return isinstance(config, dict) and ("model_type" in config or "architectures" in config)


def read_json(path: Path) -> Any:
    """Return a file's content, or None if it can't be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def name_several(folders: Iterable[str]) -> str:
    """Return the part of an error that names several models to choose from."""
    names = sorted(folders)
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{len(names)} models ({', '.join(names[:_MAX_NAMED])}{more}): name one in LONGHAUL_MODEL"


def name_contents(files: Iterable[str]) -> str:
    """Return what a folder without a transformers model holds, if it is one of the things that people take for one."""
    names = sorted(files)
    for name, what in _LOOKALIKES.items():
        if name in names:
            return f"{name} is {what}"
    for ending, what in _LOOKALIKE_ENDINGS.items():
        if found := next((name for name in names if name.endswith(ending)), None):
            return f"{found} is {what}"
    return ""


def name_unreadable(path: Path, directory: Path) -> str:
    """Return the error for a file or folder in `directory` that this user may not read."""
    mode = path.lstat().st_mode & 0o7777
    return f"user {os.getuid()} may not read {path} (mode {mode:o}): chmod -R a+rX {directory}, or run as its owner"


def _folders(directory: Path, depth: int) -> Iterator[Path]:
    """Yield the folders below a directory, without those inside a model: a trainer leaves its checkpoints there."""
    if depth == 0:
        return
    for path in _list(directory):
        if os.path.isdir(path) and not is_foreign(path.name):
            yield path
            if not os.path.isfile(path / "config.json"):
                yield from _folders(path, depth - 1)


def _list(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []
