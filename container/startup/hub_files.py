"""The files of a hub's repository that a model needs, by their names and the index of its shards."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

import msgspec

from container.settings import BadSetting
from container.startup.model_folder import is_foreign, name_contents, name_several

_SUPPORT_ENDINGS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_INDEX_ENDING = ".index.json"
_TEMPLATES = "additional_chat_templates"
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
"""The weights that transformers loads, in its order."""
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def find_folder(model: str, names: Collection[str]) -> tuple[str, list[str]]:
    """Return the model's folder in its repository, as the prefix of names, and the names of what is in it.

    Raises BadSetting if there is no model, or several in folders.
    """
    if "config.json" in names:
        return "", list(names)
    configs = [path for path in map(PurePosixPath, names) if path.name == "config.json"]
    folders = [str(path.parent) for path in configs if not any(map(is_foreign, path.parent.parts))]
    if len(folders) == 1:
        prefix = f"{folders[0]}/"
        return prefix, [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if folders:
        raise BadSetting(f"{model} holds {name_several(folders)} as a directory that you have downloaded")
    what = name_contents(names) or "it has no config.json"
    raise BadSetting(f"{model} holds no model that can be served: {what}")


def choose_weights(model: str, files: Collection[str], *, allow_pickle: bool) -> str:
    """Return the file of weights, or the index of its shards. Raises BadSetting if none can be loaded."""
    loadable: tuple[str, ...] = _SAFETENSORS + _PICKLES if allow_pickle else _SAFETENSORS
    if chosen := next((name for name in loadable if name in files), None):
        return chosen
    if any(name in files for name in _PICKLES):
        raise BadSetting(
            f"{model} has only pickle weights (pytorch_model*.bin), which can run code when they are loaded: "
            "take one with safetensors, or set LONGHAUL_ALLOW_PICKLE=1 if you trust their source"
        )
    others = sorted(name for name in files if name.endswith(".safetensors") and "/" not in name)
    found = f" (it has {others[0]})" if others else ""
    what = name_contents(name for name in files if name == "adapter_config.json" or name.endswith(".gguf"))
    raise BadSetting(
        f"{model} has no weights that can be loaded: "
        + (what or f"expected model.safetensors, or model.safetensors.index.json and its shards{found}")
    )


def list_support_files(files: Iterable[str], *, with_code: bool) -> set[str]:
    """Return configuration, tokenizer and templates; code may lie in any folder."""
    support = set()
    for name in files:
        path = PurePosixPath(name)
        if len(path.parts) == 1 and name.endswith(_SUPPORT_ENDINGS) and not name.endswith(_INDEX_ENDING):
            support.add(name)
        if path.parts[:-1] == (_TEMPLATES,) and path.suffix == ".jinja":
            support.add(name)
        if with_code and path.suffix == ".py":
            support.add(name)
    return support


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def read_shards(model: str, name: str, index: bytes, files: Collection[str]) -> set[str]:
    """Return the shards that an index names. Raises BadSetting for one that the repository lacks."""
    try:
        shards = set(msgspec.json.decode(index, type=_Index).weight_map.values())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadSetting(f"{model}: {name} is not an index of weights: {error}") from None
    if missing := sorted(shards - set(files)):
        raise BadSetting(
            f"{model} lacks {len(missing)} of the {len(shards)} files in {name}, the first is {missing[0]}"
        )
    return shards
