from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from container.tokenization.vocabulary import Token, Vocabulary
from testing import tiny_tokenizers

FALLBACK = tiny_tokenizers.byte_fallback()
WRITABLE = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cc", "Cs"])
"""Characters that SmolLM2's tokenizer can write: it lacks the bytes of the others."""


@pytest.fixture(scope="module")
def real(model_dir: str) -> Any:
    return AutoTokenizer.from_pretrained(model_dir)


def tokens(tokenizer: Any, text: str) -> list[Token]:
    vocabulary = Vocabulary(tokenizer)
    return [vocabulary.token(token_id) for token_id in tokenizer(text, add_special_tokens=False)["input_ids"]]


def joined(tokens: list[Token]) -> bytes:
    return b"".join(token.bytes or b"" for token in tokens)


def test_byte_level_token_has_bytes_and_escapes(real: Any) -> None:
    assert tokens(real, " the") == [Token(" the", b" the")]
    assert [token.text for token in tokens(real, "日")] == ["\\xe6\\x97", "\\xa5"]


@settings(deadline=None, derandomize=True)
@given(text=st.text(WRITABLE, max_size=30))
def test_byte_level_tokens_join_to_text(real: Any, text: str) -> None:
    assert joined(tokens(real, text)) == text.encode()


def test_sentencepiece_token_keeps_its_space() -> None:
    assert tokens(FALLBACK, "the")[:2] == [Token(" ", b" "), Token("t", b"t")]
    the = FALLBACK.convert_tokens_to_ids("▁the")
    assert Vocabulary(FALLBACK).token(the) == Token(" the", b" the")


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=30).filter(lambda text: "▁" not in text and text != ""))
def test_sentencepiece_tokens_join_to_text(text: str) -> None:
    assert joined(tokens(FALLBACK, text)) == b" " + text.encode()


def test_byte_token_has_its_byte() -> None:
    assert Vocabulary(FALLBACK).token(0xE6) == Token("\\xe6", b"\xe6", is_byte=True)
    assert Vocabulary(FALLBACK).token(0x0A) == Token("\n", b"\n", is_byte=True)


def test_special_token_has_only_a_name(real: Any) -> None:
    assert Vocabulary(real).token(2) == Token("<|im_end|>", None)
    assert Vocabulary(FALLBACK).token(FALLBACK.eos_token_id) == Token("</s>", None)


@pytest.mark.parametrize("tokenizer", [FALLBACK, tiny_tokenizers.metaspace(), tiny_tokenizers.words()])
def test_unknown_id_has_no_text(tokenizer: Any) -> None:
    assert Vocabulary(tokenizer).token(100_000) == Token("", b"")


def test_words_without_decoder_are_spaced() -> None:
    assert Vocabulary(tiny_tokenizers.words()).token(4) == Token(" für", " für".encode())
