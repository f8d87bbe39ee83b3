"""Small tokenizers of each kind, as transformers gives them: what sentencepiece's models and others become there."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
"""Ids 0 to 255 of a tokenizer with byte fallback."""
PIECES = ["▁", "▁the", "▁a", "ab", "c▁d", "the", "für", "日", *"abcdefghijklmnopqrstuvwxyz.!"]
SPECIAL = ["<s>", "</s>", "<|user|>"]
TEMPLATE = """{{ bos_token }}{% if tools %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}{% if mood %}mood: {{ mood }}
{% endif %}{% for message in messages %}<|user|>{{ message.role }}: {{ message.content }}
{%- for call in message.tool_calls %} {{ call.id }} {{ call.function.name }} {{ call.function.arguments | tojson }}
{%- endfor %}</s>
{% endfor %}{% if add_generation_prompt %}<|user|>assistant: {% endif %}"""
"""A chat template of all that there is: tools and their calls, a variable of its own, and the first token."""


def byte_fallback(*, chat_template: str | None = None) -> Any:
    """Like Llama 2's: spaces are `▁`, the first of a text is dropped, and a text begins with `<s>`."""
    vocabulary = {piece: place for place, piece in enumerate([*BYTES, "<unk>", *PIECES])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finished(backend, chat_template)


def metaspace() -> Any:
    """Unigram, like T5's and XGLM's: it has no bytes."""
    scores = [("<unk>", -10.0), *((piece, -1.0 - place / 100) for place, piece in enumerate(PIECES))]
    backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _finished(backend, None)


def words() -> Any:
    """One word a token, and no decoder at all."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "sea": 2, "is": 3, "für": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return _finished(backend, None)


def _finished(backend: Tokenizer, chat_template: str | None) -> Any:
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=chat_template)
