from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from container.core import Text
from container.tokenization.stop_strings import StopStrings
from container.tokenization.tokenizer import Tokenizer

Decode = Callable[[list[int]], str]

# The ids of this alphabet: 0 to 255 are the bytes, the others whole strings. Decoded as Llama's tokenizers decode:
# a run of bytes that isn't UTF-8 is replaced byte for byte.
WORDS = ["▁the", "ab", "bc", "c▁d", "END"]
SILENT = 256 + len(WORDS)
"""A special token."""


def byte_fallback() -> Decode:
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + i for i, word in enumerate(WORDS)}
    backend = Backend(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token=None))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["</s>"])
    return lambda ids: str(backend.decode(ids))


DECODE = byte_fallback()


def has_text(token_id: int) -> bool:
    return token_id != SILENT


def grow(stop: list[str], ids: list[int], decode: Decode = DECODE, step: int = 1, min_tokens: int = 0) -> str | None:
    """Return the text that is found as the output grows to `ids`, `step` tokens at a time."""
    search = StopStrings(stop, decode, has_text, min_tokens)
    ends = [*range(step, len(ids), step), len(ids)]
    return next((text for end in ends if (text := search.find(ids[:end])) is not None), None)


def as_bytes(text: str) -> list[int]:
    return list(text.encode())


def test_incomplete_string_is_not_found() -> None:
    assert grow(["END"], as_bytes("the EN")) is None


def test_text_is_cut_before_string() -> None:
    assert grow(["END"], as_bytes("the END")) == "the "


def test_string_is_found_across_tokens() -> None:
    ab, bc = 257, 258
    assert grow(["abbc"], [*as_bytes("x "), ab, bc]) == "x "
    assert grow(["b"], [*as_bytes("x "), ab]) == "x a"


def test_the_earliest_of_several_counts() -> None:
    assert grow(["D", "END"], [*as_bytes("the "), 260]) == "the "


def test_tokens_coming_together_are_all_searched() -> None:
    ids = as_bytes("a STOP" + "b" * 100)
    assert grow(["STOP"], ids, step=len(ids)) == "a "


@pytest.mark.parametrize("step", [1, 3, 100])
def test_string_counts_after_min_tokens(step: int) -> None:
    ids = as_bytes("an END, the END.")
    assert grow(["END"], ids, step=step, min_tokens=5) == "an "
    assert grow(["END"], ids, step=step, min_tokens=6) == "an END, the "
    assert grow(["END"], ids, step=step, min_tokens=15) is None
    assert grow(["END", ", "], ids, step=step, min_tokens=7) == "an END"


def test_character_completed_after_min_tokens_counts() -> None:
    assert grow(["é"], as_bytes("é café"), min_tokens=1) == ""
    assert grow(["é"], as_bytes("é café"), min_tokens=2) == "é caf"


def test_split_character_is_never_cut() -> None:
    assert grow(["é"], as_bytes("café")) == "caf"
    assert grow(["\ufffd"], as_bytes("日本")) is None


def test_window_within_character_finds_string() -> None:
    assert grow(["🙃"], as_bytes("🙂" * 50 + "🙃")) == "🙂" * 50


def test_long_string_of_byte_tokens_is_found() -> None:
    assert grow(["🙂" * 1000], as_bytes("x" + "🙂" * 1000)) == "x"


def test_without_stop_strings_nothing_is_decoded() -> None:
    def refuse(ids: list[int]) -> str:
        raise AssertionError

    assert StopStrings([], refuse, has_text).find([1, 2, 3]) is None


def test_whole_output_is_decoded_only_once() -> None:
    decoded: list[int] = []

    def counted(ids: list[int]) -> str:
        decoded.append(len(ids))
        return DECODE(ids)

    assert grow(["END"], as_bytes("." * 500 + "END"), counted) == "." * 500
    assert [length for length in decoded if length > 50] == [503]


def test_tokens_without_text_may_interrupt_string() -> None:
    ids = [*as_bytes("the E"), *[SILENT] * 1000, *as_bytes("N"), *[SILENT] * 1000, *as_bytes("D")]
    assert grow(["END"], ids) == grow(["END"], ids, step=len(ids)) == "the "


def test_tokens_without_text_are_not_decoded() -> None:
    decoded: list[int] = []

    def counted(ids: list[int]) -> str:
        decoded.extend(ids)
        return DECODE(ids)

    assert grow(["END"], [*as_bytes("the EN"), *[SILENT] * 1000], counted) is None
    assert SILENT not in decoded


PIECES = st.sampled_from(
    [*map(as_bytes, ["é", "🙂", "日", " ", "E"]), [0xF0], [256], [257], [258], [259], [260], [SILENT] * 30]
)


@settings(deadline=None)
@given(
    st.lists(PIECES, max_size=60).map(lambda pieces: list(chain.from_iterable(pieces))),
    st.lists(st.sampled_from(["END", "🙂🙂", "bbc", " the", "éE", "c d", "日 "]), min_size=1, max_size=3),
    st.integers(0, 9),
)
def test_steps_find_what_whole_search_finds(ids: list[int], stop: list[str], due: int) -> None:
    search = StopStrings(stop, DECODE, has_text, due)
    for end in range(1, len(ids) + 1):
        text, early = DECODE(ids[:end]).rstrip("\ufffd"), DECODE(ids[: min(end, due)]).rstrip("\ufffd")
        places = [
            (start, start + len(string))
            for string in stop
            for start in range(len(text))
            if text.startswith(string, start)
        ]
        starts = [start for start, last in places if last > len(early)]
        assert search.find(ids[:end]) == (text[: min(starts)] if starts else None)
        if starts:
            break


@pytest.mark.parametrize("text", ["Hello, world!\n\nUser: hi", "für 日本語の文章🙂🙂. User: no", "a\tb  c\r\nUser:"])
def test_a_real_tokenizers_output_is_cut_exactly(text: str, model_dir: str) -> None:
    backend = Backend.from_file(f"{model_dir}/tokenizer.json")
    ids = backend.encode(text).ids
    assert grow(["User:"], ids, backend.decode) == text[: text.index("User:")]


def test_real_special_tokens_hide_no_string(model_dir: str) -> None:
    tokenizer = Tokenizer.load(model_dir, trust_remote_code=False)
    a, b, end = (tokenizer.encode(Text(text=text), param="", max_tokens=9).ids[0] for text in ("a", "b", "<|im_end|>"))
    search = StopStrings(["ab"], tokenizer.decode, tokenizer.vocabulary.has_text)
    found = [search.find([a, *[end] * 16, b][:length]) for length in range(1, 19)]
    assert found == [None] * 17 + [""]
