"""One line for the log that tells how the model will stop, how long its sequences may get, and what makes its chats."""

from __future__ import annotations

from typing import Any

from container.engine.messages import EngineInfo
from container.tokenization.model_defaults import ModelDefaults
from container.tokenization.tokenizer import Tokenizer
from container.tokenization.tokenizer_files import name_template_source


def report(
    model_dir: str, defaults: ModelDefaults, tokenizer: Tokenizer, info: EngineInfo
) -> tuple[str, dict[str, Any]]:
    """Return the line and the same as fields. Raises OSError, ValueError for files that have become unreadable."""
    ends = _describe_ends(model_dir, defaults, tokenizer)
    length = _describe_length(info)
    template = _describe_template(model_dir, tokenizer)
    fields = {
        "action": "model",
        "end_token_ids": list(defaults.eos_token_ids),
        "max_sequence_tokens": info.max_sequence_tokens,
        "chat_templates": tokenizer.template_names,
    }
    return f"{ends}; {length}; {template}", fields


def _describe_ends(model_dir: str, defaults: ModelDefaults, tokenizer: Tokenizer) -> str:
    if not defaults.eos_token_ids:
        return "no file names a token that ends texts: they end at their limit"
    of_files = ModelDefaults.load(model_dir)
    ends = (
        f"{tokenizer.vocabulary.token(token_id).text or 'a token without text'} ({token_id}, from "
        f"{of_files.eos_source if token_id in of_files.eos_token_ids else 'the tokenizer'})"
        for token_id in defaults.eos_token_ids
    )
    return f"texts end at {' or '.join(ends)}"


def _describe_length(info: EngineInfo) -> str:
    if info.max_sequence_tokens < info.max_model_len:
        model = f"the model could take {info.max_model_len}"
        return f"a sequence holds {info.max_sequence_tokens} tokens, as many as fit in the KV cache ({model})"
    return f"a sequence holds {info.max_sequence_tokens} tokens ({info.length_reason})"


def _describe_template(model_dir: str, tokenizer: Tokenizer) -> str:
    names = tokenizer.template_names
    if not names:
        return "it has no chat template, so that chats are refused"
    named = "" if names == ["default"] else f", named {', '.join(names)}"
    return f"chats go through the template of {name_template_source(model_dir)}{named}"
