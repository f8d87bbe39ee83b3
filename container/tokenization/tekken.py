"""Mistral's own tokenizer files: `tekken.json`, which mistral-common reads, converted for transformers.

mistral-common encodes chats without a template. As a request's chat goes through one here, like any other model's, it
is asked for the template that does the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAME = "tekken.json"

_SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
"""Tokens that the file doesn't name by their use: mistral-common knows them by heart."""


def load(folder: Path, settings: dict[str, Any]) -> Any:
    """Return transformers' tokenizer for the file, with its special tokens. Raises ValueError, OSError.

    `settings` are those of tokenizer_config.json, which go before mistral-common's.
    """
    from transformers import TokenizersBackend

    path = folder / NAME
    options: dict[str, Any] = {name: token for name, token in _SPECIAL_TOKENS.items() if not settings.get(name)}
    options["add_bos_token"] = settings.get("add_bos_token", True)
    make: Any = TokenizersBackend.from_pretrained
    tokenizer = make(str(folder), vocab_file=str(path), local_files_only=True, **options)
    return tokenizer


def make_template(folder: Path) -> str:
    """Return a chat template that does as mistral-common does with the file. Raises ValueError."""
    from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template

    return convert_tokenizer_to_chat_template(folder / NAME)
