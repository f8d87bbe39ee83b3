"""Small tokenizers of each kind, as transformers makes them from sentencepiece's and other models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
"""Tokens with ids 0 to 255 of a tokenizer with byte fallback."""
PIECES = ["▁", "▁the", "▁a", "ab", "c▁d", "the", "für", "日", *"abcdefghijklmnopqrstuvwxyz.!"]
SPECIAL = ["<s>", "</s>", "<|user|>"]
TEMPLATE = """{{ bos_token }}{% if tools %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}{% if mood %}mood: {{ mood }}
{% endif %}{% for message in messages %}<|user|>{{ message.role }}: {{ message.content }}
{%- for call in message.tool_calls %} {{ call.id }} {{ call.function.name }} {{ call.function.arguments | tojson }}
{%- endfor %}</s>
{% endfor %}{% if add_generation_prompt %}<|user|>assistant: {% endif %}"""
"""A chat template with everything there is: tools and their calls, a variable of its own, and the first token."""


def byte_fallback(*, chat_template: str | None = None) -> Any:
    """Make a tokenizer like Llama 2's: spaces are `▁`, a text's first space is dropped, and a text begins with
    `<s>`."""
    vocabulary = {piece: index for index, piece in enumerate([*BYTES, "<unk>", *PIECES])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finish(backend, chat_template)


def metaspace() -> Any:
    """Make a Unigram tokenizer like T5's and XGLM's: it has no bytes."""
    scores = [("<unk>", -10.0), *((piece, -1.0 - index / 100) for index, piece in enumerate(PIECES))]
    backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _finish(backend, None)


def words() -> Any:
    """Make a tokenizer of whole words, without a decoder."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "sea": 2, "is": 3, "für": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return _finish(backend, None)


def byte_level(
    special: Sequence[str] = (), added: Sequence[str] = (), *, begins_with: str | None = None, **given: Any
) -> Any:
    """Make a tokenizer like GPT-2's, of single bytes, with special tokens and other added ones.

    `begins_with` is the special token that each text begins with; `given` are arguments of transformers' tokenizer.
    """
    vocabulary = {name: index for index, name in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in added])
    if begins_with is not None:
        first = (begins_with, backend.token_to_id(begins_with))
        backend.post_processor = processors.TemplateProcessing(single=f"{begins_with} $A", special_tokens=[first])
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=backend, **given)


def _finish(backend: Tokenizer, chat_template: str | None) -> Any:
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=chat_template)
