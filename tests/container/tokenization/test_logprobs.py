from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from container.core import TokenLogprob
from container.engine.sequence import TokenLogprobs
from container.tokenization.logprobs import token_logprobs
from container.tokenization.vocabulary import Vocabulary
from testing import tiny_tokenizers

FALLBACK = tiny_tokenizers.byte_fallback()
END = 2
"""Id of SmolLM2's `<|im_end|>`."""


@pytest.fixture(scope="module")
def real(model_dir: str) -> Any:
    return AutoTokenizer.from_pretrained(model_dir)


def of_text(tokenizer: Any, ids: list[int], *, characters: int | None = None) -> tuple[TokenLogprob, ...]:
    scores = [TokenLogprobs(-0.5)] * len(ids)
    return token_logprobs(Vocabulary(tokenizer), ids, scores, characters=characters)


def texts(tokens: tuple[TokenLogprob, ...]) -> list[str]:
    return [token.text for token in tokens]


def test_each_token_has_text_bytes_offset(real: Any) -> None:
    tokens = of_text(real, real("The sea 日")["input_ids"])
    assert texts(tokens) == ["The", " sea", " \\xe6", "\\x97", "\\xa5"]
    assert b"".join(token.utf8 or b"" for token in tokens) == "The sea 日".encode()
    assert [token.offset for token in tokens] == [0, 3, 7, 8, 8]


def test_special_token_within_text_has_name(real: Any) -> None:
    (sea,) = real(" sea")["input_ids"]
    first, second = of_text(real, [END, sea])
    assert (first.text, first.utf8, first.offset, second.offset) == ("<|im_end|>", None, 0, 0)


def test_stop_string_keeps_tokens_begun_before(real: Any) -> None:
    ids = real("The sea is")["input_ids"]
    assert texts(of_text(real, ids, characters=len("The sea"))) == ["The", " sea"]
    assert texts(of_text(real, ids, characters=len("The se"))) == ["The", " sea"]
    assert texts(of_text(real, ids, characters=0)) == []


def test_stop_string_may_cut_byte_run() -> None:
    ids = [*"é\n\n".encode(), FALLBACK.convert_tokens_to_ids("the")]
    tokens = of_text(FALLBACK, ids, characters=len("é\n"))
    assert [token.utf8 for token in tokens] == [b"\xc3", b"\xa9", b"\n"]
    assert [token.offset for token in of_text(FALLBACK, ids)] == [0, 0, 1, 2, 3]


def test_top_tokens_are_named_like_chosen(real: Any) -> None:
    score = TokenLogprobs(-1.5, [(END, -0.25), (345, -1.5)])
    (token,) = token_logprobs(Vocabulary(real), [345], [score], characters=None)
    assert token.logprob == -1.5
    assert [(rival.id, rival.logprob, rival.utf8 is None) for rival in token.top] == [
        (END, -0.25, True),
        (345, -1.5, False),
    ]


@pytest.mark.parametrize("logprob", [-math.inf, math.nan])
def test_infinite_logprob_becomes_openais_minimum(real: Any, logprob: float) -> None:
    score = TokenLogprobs(logprob, [(345, logprob)])
    (token,) = token_logprobs(Vocabulary(real), [345], [score], characters=None)
    assert (token.logprob, token.top[0].logprob) == (-9999.0, -9999.0)


@settings(deadline=None, derandomize=True)
@given(st.text(st.sampled_from("ab é日🙂\n."), min_size=1, max_size=12), st.data())
def test_cut_keeps_only_needed_tokens(text: str, data: st.DataObject) -> None:
    ids = FALLBACK(text, add_special_tokens=False)["input_ids"]
    whole = FALLBACK.decode(ids)
    characters = data.draw(st.integers(0, len(whole)))
    kept = of_text(FALLBACK, ids, characters=characters)
    said = b"".join(token.utf8 or b"" for token in kept).decode()[1:]  # but for the first space
    assert said.startswith(whole[:characters])
    assert not kept or len(said) - len(kept[-1].text) <= characters
