from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from container.tokenization.detokenizer import Detokenizer
from container.tokenization.vocabulary import Vocabulary
from testing import tiny_tokenizers

FALLBACK = tiny_tokenizers.byte_fallback()
SPECIAL = FALLBACK.eos_token_id
WRITABLE = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cc", "Cs"], exclude_characters="\ufffd")
"""Characters that SmolLM2's tokenizer can write: it lacks the bytes of the others."""
KINDS = ["byte level", "byte fallback", "metaspace", "words"]


@pytest.fixture(scope="module")
def tokenizers(model_dir: str) -> dict[str, Any]:
    made = (FALLBACK, tiny_tokenizers.metaspace(), tiny_tokenizers.words())
    return dict(zip(KINDS, (AutoTokenizer.from_pretrained(model_dir), *made), strict=True))


@pytest.fixture(scope="module")
def vocabularies(tokenizers: dict[str, Any]) -> dict[str, Vocabulary]:
    return {kind: Vocabulary(tokenizer) for kind, tokenizer in tokenizers.items()}


def pieces(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
    """Return a piece for each id, and one for the end."""
    detokenizer = Detokenizer(vocabulary)
    return [*map(detokenizer.add, ids), detokenizer.finish()]


def encoded(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_split_character_comes_with_last_token(tokenizers: dict[str, Any], vocabularies: dict[str, Vocabulary]) -> None:
    ids = encoded(tokenizers["byte level"], "a日b")
    assert pieces(vocabularies["byte level"], ids) == ["a", "", "日", "b", ""]


def test_byte_run_comes_with_next_token() -> None:
    ids = [*"é".encode(), 0x0A, FALLBACK.convert_tokens_to_ids("▁the")]
    assert pieces(Vocabulary(FALLBACK), ids) == ["", "", "", "é\n the", ""]
    assert pieces(Vocabulary(FALLBACK), ids[:3]) == ["", "", "", "é\n"]


def test_bad_byte_spoils_its_whole_run() -> None:
    run = [*"é".encode(), 0xFF]
    assert "".join(pieces(Vocabulary(FALLBACK), run)) == FALLBACK.decode(run) == "\ufffd" * 3


def test_special_token_does_not_end_run() -> None:
    first, second = "é".encode()
    assert pieces(Vocabulary(FALLBACK), [first, SPECIAL, second]) == ["", "", "", "é"]


def test_only_first_space_is_dropped() -> None:
    the, space = FALLBACK.convert_tokens_to_ids(["▁the", "▁"])
    assert pieces(Vocabulary(FALLBACK), [SPECIAL, the, the]) == ["", "the", " the", ""]
    assert pieces(Vocabulary(FALLBACK), [space, the]) == ["", " the", ""]


def test_unfinished_bytes_never_come(vocabularies: dict[str, Vocabulary]) -> None:
    token_id = next(i for i in range(49152) if vocabularies["byte level"].token(i).bytes == b"\xe6\x97")
    assert pieces(vocabularies["byte level"], [token_id]) == ["", ""]


def test_run_comes_without_unfinished_bytes() -> None:
    assert pieces(Vocabulary(FALLBACK), list("é日".encode())[:-1]) == ["", "", "", "", "é"]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, derandomize=True, max_examples=200)
@given(data=st.data())
def test_pieces_of_any_ids_equal_decoding(
    data: st.DataObject, kind: str, tokenizers: dict[str, Any], vocabularies: dict[str, Vocabulary]
) -> None:
    vocabulary, size = vocabularies[kind], len(tokenizers[kind]) + 2
    # Parts of characters are rare among 49,152 tokens and all that matters here.
    parts = [i for i in range(min(size, 600)) if "\\x" in vocabulary.token(i).text] or [0]
    ids = data.draw(st.lists(st.sampled_from(parts) | st.integers(0, size), max_size=12))
    assert "".join(pieces(vocabulary, ids)) == vocabulary.decode_whole(ids)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@settings(deadline=None, derandomize=True, max_examples=200)
@given(text=st.text(WRITABLE, max_size=30))
def test_no_piece_splits_a_character(
    text: str, kind: str, tokenizers: dict[str, Any], vocabularies: dict[str, Vocabulary]
) -> None:
    ids = encoded(tokenizers[kind], text)
    whole = tokenizers[kind].decode(ids, skip_special_tokens=True)
    said = list(accumulate(pieces(vocabularies[kind], ids)))
    assert said[-1] == whole
    assert all(whole.startswith(so_far) and "\ufffd" not in so_far for so_far in said)
