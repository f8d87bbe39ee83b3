from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container.core import Item, Parameters, TokenIds
from container.errors import InvalidRequest
from container.tokenization.model_defaults import ModelDefaults
from container.tokenization.output_text import OutputText
from container.tokenization.preparer import Prepared, Preparer
from container.tokenization.tokenizer import Tokenizer
from testing import tiny_tokenizers
from testing.chat_templates import STYLES

EXPLICIT: dict[str, Any] = {"include_stop_str_in_output": True}


@cache
def load(style: str = "chatml") -> Tokenizer:
    tokenizer = STYLES[style].tokenizer()
    return Tokenizer(tokenizer, len(tokenizer))


def prepare(tokenizer: Tokenizer, **given: Any) -> Prepared:
    parameters = Parameters(max_new_tokens=1000, **given)
    names = {"spaces_between_special_tokens": "parameters.spaces_between_special_tokens"}
    item = Item(prompt=TokenIds(ids=(1,)), parameters=parameters, sample_by_default=False, param="prompt", names=names)
    defaults = ModelDefaults().with_end_token(tokenizer.end_token_id)
    preparer = Preparer(tokenizer=tokenizer, defaults=defaults, max_sequence_tokens=9999, default_max_new_tokens=99)
    return preparer.prepare(item, random_seed=0)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    reference = tokenizer._tokenizer
    ids: list[int] = reference(text, add_special_tokens=False)["input_ids"]
    return ids


def said(text: str, *, style: str = "chatml", cut: int = 0, **given: Any) -> str:
    """Return the answer that shows an output, up to where it ends: at a stop token, a stop string or its last byte."""
    tokenizer = load(style)
    prepared = prepare(tokenizer, **given)
    output = OutputText(tokenizer, prepared, min_new_tokens=prepared.samplings[0].min_new_tokens)
    written = ids_of(tokenizer, text)
    ids: list[int] = []
    for token_id in written[: len(written) - cut]:
        ids.append(token_id)
        is_stopped = token_id in prepared.samplings[0].stop_token_ids
        stop_chars = output.find_stop(ids)
        if is_stopped or stop_chars is not None:
            break
    else:
        is_stopped, stop_chars = False, None
    return output.finish(ids, is_stopped=is_stopped and stop_chars is None, stop_chars=stop_chars).text


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("<file_sep>",), "The sea\n"),
        (("\n<file_sep>",), "The sea"),
        (("<file_sep>a",), "The sea\n"),
        (("e", "\n<file_sep>"), "Th"),
        (("<|im_start|>",), "The sea\na lake"),
    ],
)
def test_special_token_in_stop_string_stops(stop: tuple[str, ...], text: str) -> None:
    assert said("The sea\n<file_sep>a lake", stop=stop) == text


def test_special_stop_string_is_stop_token() -> None:
    tokenizer = load()
    (sampling,) = prepare(tokenizer, stop=("sea", "<file_sep>"), stop_token_ids=(7,), min_new_tokens=5).samplings
    end, separator = ids_of(tokenizer, "<|im_end|><file_sep>")
    assert sampling.stop_token_ids == (end, 7, separator)
    assert sampling.min_new_tokens == 5


def test_special_stop_string_stops_despite_ignore_eos() -> None:
    tokenizer = load()
    (sampling,) = prepare(tokenizer, stop=("<|im_end|>",), ignore_eos=True).samplings
    assert sampling.stop_token_ids == tuple(ids_of(tokenizer, "<|im_end|>"))


def test_special_tokens_show_on_demand() -> None:
    text = "a<file_sep>b<|im_start|>c"
    assert said(text) == said(text, skip_special_tokens=True) == "abc"
    assert said(text, skip_special_tokens=False) == text


def test_end_token_shows_only_on_demand() -> None:
    for shown, text in ((None, "a"), (False, "a"), (True, "a<|im_end|>")):
        assert said("a<|im_end|>b", skip_special_tokens=False, include_stop_str_in_output=shown) == text
    assert said("a<|im_end|>b", **EXPLICIT) == "a"


def test_marker_stays_in_text() -> None:
    name = "[TOOL_CALLS]"
    call = f'{name}[{{"name": "weather"}}]'
    assert said(f"{call}</s>", style="instructions") == call
    assert said(f"{call}</s>", style="instructions", skip_special_tokens=True) == call.removeprefix(name)
    assert said(f"[MIDDLE]{call}[/INST]", style="instructions") == call


def test_marker_may_be_stop_string() -> None:
    text = "Hm.[TOOL_CALLS][]"
    assert said(text, style="instructions", stop=("[TOOL_CALLS]",)) == "Hm."
    assert said(text, style="instructions", stop=("[TOOL_CALLS]",), **EXPLICIT) == "Hm.[TOOL_CALLS]"


def test_channels_stay_in_text() -> None:
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    assert said(f"{text}<|return|>", style="channels") == text


def test_tags_that_are_not_special_stay() -> None:
    text = "<think>Hm.</think>Yes."
    assert said(f"{text}<|im_end|>", style="reasoning", skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("stop", "text"), [("sea", "The sea"), ("<file_sep>", "The sea <file_sep>"), (" <file_sep>", "The sea <file_sep>")]
)
def test_stop_string_is_included_on_demand(stop: str, text: str) -> None:
    assert said("The sea <file_sep> is", stop=(stop,), **EXPLICIT) == text


def test_first_of_two_stop_strings_is_included() -> None:
    assert said("The sea.", stop=("a", "sea"), **EXPLICIT) == "The sea"


def test_text_stop_token_is_left_out_on_demand() -> None:
    tokenizer = load()
    (full_stop,) = ids_of(tokenizer, ".")
    for included, text in ((None, "The sea."), (True, "The sea."), (False, "The sea")):
        assert said("The sea. A", stop_token_ids=(full_stop,), include_stop_str_in_output=included) == text


@pytest.mark.parametrize("text", ["日", "🙂", "é", "a日", "🙂日"])
def test_text_cut_within_character_leaves_it_out(text: str) -> None:
    for cut in range(1, len(text[-1].encode())):
        assert said(text, cut=cut) == text[:-1]


@pytest.mark.parametrize("text", ["\ufffd", "a\ufffd", "\ufffd\ufffd"])
def test_written_replacement_character_stays(text: str) -> None:
    assert said(text) == text
    assert said(f"{text}日", cut=1) == text


def test_bytes_that_begin_no_character_stay() -> None:
    tokenizer = load()
    stray = ids_of(tokenizer, "日")[1:]
    assert tokenizer.vocabulary.decode_whole(stray) == "\ufffd" * 2
    assert tokenizer.vocabulary.decode_whole([*ids_of(tokenizer, "a"), *stray]) == "a" + "\ufffd" * 2


def test_cut_character_spoils_no_byte_run() -> None:
    tokenizer = Tokenizer(tiny_tokenizers.byte_fallback(), 400)
    assert tokenizer.decode(list("é日".encode())[:-1]) == "\ufffd" * 4
    assert tokenizer.vocabulary.decode_whole(list("é日".encode())[:-1]) == "é"


def test_prompt_of_ids_cut_within_character() -> None:
    tokenizer = load()
    ids = ids_of(tokenizer, "a日")[:-1]
    assert tokenizer.encode(TokenIds(ids=tuple(ids)), param="prompt", max_tokens=99).text == "a"


def test_spaces_that_tokenizer_writes_stay() -> None:
    reference = tiny_tokenizers.words()
    tokenizer = Tokenizer(reference, len(reference))
    prepare(tokenizer, spaces_between_special_tokens=True, skip_special_tokens=False)
    prepare(tokenizer, spaces_between_special_tokens=False)
    prepare(load(), spaces_between_special_tokens=False, skip_special_tokens=False)
    with pytest.raises(InvalidRequest, match="spaces_between_special_tokens can't be false") as caught:
        prepare(tokenizer, spaces_between_special_tokens=False, skip_special_tokens=False)
    assert caught.value.param == "parameters.spaces_between_special_tokens"


PIECES = st.sampled_from(["a", "日", "🙂", "<file_sep>", "<|im_start|>", "END", "EN", "D", "<file", "\ufffd"])


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.lists(PIECES, max_size=8).map("".join),
    st.lists(st.sampled_from(["END", "a<file_sep>", "<|im_start|>E", "日"]), min_size=1, max_size=3),
    st.integers(0, 3),
)
def test_answer_is_text_before_stop(text: str, stop: list[str], cut: int) -> None:
    tokenizer = load()
    ids = ids_of(tokenizer, text)
    ids = ids[: len(ids) - cut]
    names = ("<file_sep>", "<|im_start|>")
    shows_names = any(name in string for name in names for string in stop)
    searched = tokenizer.vocabulary_of(not shows_names).decode_whole(ids)
    before = searched[: min((start for string in stop if (start := searched.find(string)) >= 0), default=None)]
    for name in names:
        before = before.replace(name, "")
    assert said(text, cut=cut, stop=tuple(stop)) == before


def test_left_out_tokens_are_not_counted() -> None:
    tokenizer = load()
    ids = ids_of(tokenizer, "ab<|im_end|>")
    for included, count in ((None, 2), (True, 3)):
        prepared = prepare(tokenizer, skip_special_tokens=False, include_stop_str_in_output=included)
        output = OutputText(tokenizer, prepared, min_new_tokens=0)
        assert output.finish(ids, is_stopped=True, stop_chars=None).tokens == count
