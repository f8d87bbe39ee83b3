"""The model's tokenizer, as transformers loads it from whichever files the model has.

The server must never import torch, which costs seconds and hundreds of megabytes; transformers' tokenizers don't need
it.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec

from container.tokenization import sentencepiece_model, tekken

_FILES = ("tokenizer.json", sentencepiece_model.NAME, tekken.NAME, "vocab.json", "vocab.txt")
_SETTINGS = "tokenizer_config.json"
_TEMPLATE_FILES = ("chat_template.jinja", "additional_chat_templates")
_LEGACY_TEMPLATE = "chat_template"
"""Name of the file, with .json behind it, and of the field in it."""


def load_tokenizer(model_dir: str, *, trust_remote_code: bool) -> Any:
    """Import transformers and read the files, in seconds. Raises OSError, and ValueError for files that don't serve.

    As everywhere, `tokenizer.json` goes first; else it is converted from what mistral-common or sentencepiece reads.
    """
    _import_without_torch()
    folder = Path(model_dir)
    settings = _read_json(folder / _SETTINGS)
    runs_own_code = trust_remote_code and "auto_map" in settings
    try:
        if not runs_own_code and is_to_convert(model_dir):
            convert = tekken.load if (folder / tekken.NAME).is_file() else sentencepiece_model.load
            tokenizer = convert(folder, settings)
            _add_template(tokenizer, folder, is_tekken=convert is tekken.load)
            return tokenizer
        found = [name for name in _FILES if (folder / name).is_file()]
        if not found and not runs_own_code and not any(folder.glob("tokenizer.*json")):
            raise ValueError(f"there is none of {', '.join(_FILES)}")
        tokenizer = _load_as_configured(model_dir, trust_remote_code)
        if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
            # Transformers makes up a tokenizer of special tokens where its class finds none of the files it wants.
            raise ValueError(f"{type(tokenizer).__name__} finds no vocabulary in {', '.join(found)}")
        _add_template(tokenizer, folder)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # of several libraries
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"the tokenizer of {model_dir} can't be loaded: {kind}{error}") from error
    return tokenizer


def name_template_source(model_dir: str) -> str:
    """Return what a model's chat template is read from, for one that has a template."""
    folder = Path(model_dir)
    if any((folder / name).exists() for name in _TEMPLATE_FILES):
        return "chat_template.jinja"
    if _read_json(folder / _SETTINGS).get("chat_template"):
        return _SETTINGS
    if _LEGACY_TEMPLATE in _read_json(folder / f"{_LEGACY_TEMPLATE}.json"):
        return f"{_LEGACY_TEMPLATE}.json"
    return f"mistral-common, made for {tekken.NAME}" if is_to_convert(model_dir) else "the tokenizer's own code"


def is_to_convert(model_dir: str) -> bool:
    """Whether the model has no `tokenizer.json`, but a file from which `load_tokenizer` makes one, in seconds."""
    folder = Path(model_dir)
    has_source = any((folder / name).is_file() for name in (tekken.NAME, sentencepiece_model.NAME))
    return has_source and not any(folder.glob("tokenizer.*json"))


def save_tokenizer(tokenizer: Any, model_dir: str, directory: str) -> None:
    """Write a tokenizer that was converted to a directory, from which it loads at once. Raises OSError."""
    tokenizer.save_pretrained(directory)
    for name in ("config.json", "generation_config.json"):
        if (source := Path(model_dir, name)).is_file():
            shutil.copyfile(source, Path(directory, name))


def _import_without_torch() -> None:
    # Transformers would import torch if it found it. None stays there, so that from here on `import torch` fails in
    # this process: a process that needs it (a test's) must have imported it before.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # what import takes for "not there"
    silent = "TRANSFORMERS_NO_ADVISORY_WARNINGS"  # else it advises to install torch while it is imported
    before = os.environ.get(silent)
    os.environ[silent] = "1"
    try:
        import transformers  # noqa: F401
    finally:
        del os.environ[silent]
        if before is not None:
            os.environ[silent] = before


def _add_template(tokenizer: Any, folder: Path, *, is_tekken: bool = False) -> None:
    """Give a tokenizer without a template a processor's, which some fine-tunings leave alone, or mistral-common's."""
    if not tokenizer.chat_template:
        template = _read_json(folder / f"{_LEGACY_TEMPLATE}.json").get(_LEGACY_TEMPLATE)
        tokenizer.chat_template = template or (tekken.make_template(folder) if is_tekken else None)


def _read_json(path: Path) -> dict[str, Any]:
    """Return a file's object; nothing if there is none, or none that can be read: transformers reports that."""
    try:
        settings = msgspec.json.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _load_as_configured(model_dir: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        model_dir,
        trust_remote_code=trust_remote_code,
        local_files_only=True,
        mistral_format=False,  # else a Mistral model's own tokenizer.json is ignored where mistral-common is installed
    )
