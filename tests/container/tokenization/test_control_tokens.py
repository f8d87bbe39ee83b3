from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from container.tokenization.control_tokens import ControlTokens, any_of, roles_with_parts
from testing import tiny_tokenizers
from testing.chat_templates import STYLES, Style

REASONING = {"<think>", "</think>", "<tool_call>", "</tool_call>"}
CALLS = {"[TOOL_CALLS]"}


@pytest.mark.parametrize(
    ("style", "markers", "shown"),
    [
        ("chatml", set(), set()),
        ("reasoning", REASONING, set()),
        ("instructions", CALLS, CALLS),
        ("channels", set(), {"<|start|>", "<|end|>", "<|channel|>", "<|message|>"}),
        ("plain turns", {"<|call|>", "<think>"}, {"<|call|>"}),
        ("parts", set(), set()),
    ],
)
def test_template_tells_what_tokens_mark(style: str, markers: set[str], shown: set[str]) -> None:
    tokens = ControlTokens.of(STYLES[style].tokenizer(), ())
    assert (tokens.markers, tokens.shown) == (markers, shown)


def test_special_and_written_tokens_are_control_tokens() -> None:
    style = STYLES["plain turns"]
    tokenizer = Style(template=style.template, special=style.special, added=[*style.added, "<colour>"]).tokenizer()
    assert ControlTokens.of(tokenizer, ()).all == {*style.special, *style.added}


def test_end_tokens_mark_nothing() -> None:
    tokenizer = STYLES["instructions"].tokenizer()
    end = tokenizer.convert_tokens_to_ids("[TOOL_CALLS]")
    assert ControlTokens.of(tokenizer, [end]).shown == set()


def test_failing_template_marks_nothing() -> None:
    tokenizer = Style(template="<|a|>{{ raise_exception('no') }}", special=["<|a|>"]).tokenizer()
    assert ControlTokens.of(tokenizer, ()) == ControlTokens(all=frozenset({"<|a|>"}))
    assert roles_with_parts(tokenizer) == frozenset()


def test_tokenizer_without_template_marks_nothing() -> None:
    tokens = ControlTokens.of(tiny_tokenizers.words(), ())
    assert tokens == ControlTokens(all=frozenset(tiny_tokenizers.SPECIAL))


def test_real_model_shows_no_special_token(model_dir: str) -> None:
    tokens = ControlTokens.of(AutoTokenizer.from_pretrained(model_dir), [2])
    assert (tokens.markers, tokens.shown) == (frozenset(), frozenset())


@pytest.mark.parametrize("style", STYLES)
def test_roles_that_take_parts_are_found(style: str) -> None:
    roles = {"system", "user", "assistant"} if style == "parts" else set()
    assert roles_with_parts(STYLES[style].tokenizer()) == roles


@pytest.mark.parametrize(
    ("names", "text", "found"),
    [
        (["<a>", "<a>b", "b"], "<a>bb<a>", ["<a>b", "b", "<a>"]),
        (["<|x|>", "<|xy|>", "[A]", "[/A]", "."], "<|x|><|xy|>[/A].[B]", ["<|x|>", "<|xy|>", "[/A]", "."]),
        (["a", "aa", "aab"], "aaab", ["aa", "a"]),
        ([], "abc", []),
    ],
)
def test_longest_name_is_found(names: list[str], text: str, found: list[str]) -> None:
    assert any_of(names).findall(text) == found
