from __future__ import annotations

import pytest

from container.core import Completion, Item, Parameters, Result, Text
from container.dialects.document import RequestHead
from container.errors import InvalidRequest
from testing.container.documents import read_document

HEADER = "X-Amzn-SageMaker-Custom-Attributes"


def item(attributes: str | None = None, body: bytes = b"Once") -> Item:
    (item,) = read_document("text/plain", body, attributes).items
    return item


def refusal(attributes: str | None = None, body: bytes = b"Once") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        item(attributes, body)
    return caught.value


def answer(attributes: str | None) -> str:
    completion = Completion(text=" upon a time", token_ids=(1,), finish_reason="stop", seed=None)
    call = read_document("text/plain", b"Once", attributes)
    return call.render([Result(prompt_text="Once", prompt_tokens=1, completions=(completion,))], "served").decode()


def test_body_is_prompt_and_answer_is_text() -> None:
    assert item().prompt == Text(text="Once")
    assert answer(None) == " upon a time"
    assert read_document("text/plain", b"Once", None).content_type == "text/plain; charset=utf-8"


def test_body_must_be_utf_8() -> None:
    assert item(body="für 日本".encode()).prompt == Text(text="für 日本")
    error = refusal(body="für canary".encode("latin-1"))
    assert (error.param, error.message) == ("body", "the body is not UTF-8 (byte 1)")


def test_an_empty_body_is_refused() -> None:
    assert refusal(body=b"").param == "body"


def test_parameters_come_from_the_custom_attributes() -> None:
    given = "max_new_tokens=7; min_new_tokens=2;do_sample=true;temperature=0.5;top_k=3;top_p=1;seed=4;ignore_eos=false"
    assert item(given).parameters == Parameters(
        max_new_tokens=7, min_new_tokens=2, do_sample=True, temperature=0.5, top_k=3, top_p=1.0, seed=4
    )
    given = "min_p=0.1;repetition_penalty=1.2;presence_penalty=-1;frequency_penalty=0.5"
    assert item(given).parameters == Parameters(
        min_p=0.1, repetition_penalty=1.2, presence_penalty=-1.0, frequency_penalty=0.5
    )


def test_each_stop_is_one_more_stop_string() -> None:
    assert item("stop=END;stop=42").parameters.stop == ("END", "42")


def test_the_full_text_can_be_asked_for() -> None:
    assert answer("return_full_text=true") == "Once upon a time"


@pytest.mark.parametrize(
    "given", ["", ";;;", "trace-1234", "tenant=blue;trace", "=x", "timeout=1800;job=my-job", "a=b=c"]
)
def test_unknown_attributes_have_no_effect(given: str) -> None:
    assert item(given).parameters == Parameters()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", "canary"),
        ("max_new_tokens", ""),
        ("max_new_tokens", "1.5"),
        ("max_new_tokens", "1_000"),
        ("max_new_tokens", '"5"'),
        ("min_new_tokens", "null"),
        ("do_sample", "1"),
        ("do_sample", "canary"),
        ("temperature", "nan"),
        ("temperature", "Infinity"),
        ("temperature", "-1"),
        ("top_k", "[1]"),
        ("top_p", "1.1"),
        ("min_p", "1.1"),
        ("repetition_penalty", "0"),
        ("presence_penalty", "2.5"),
        ("frequency_penalty", "canary"),
        ("seed", "99999999999999999999"),
        ("return_full_text", "canary"),
    ],
)
def test_a_malformed_value_of_ours_is_named(name: str, value: str) -> None:
    error = refusal(f"tenant=blue;{name}={value}")
    assert error.param == f"{HEADER}: {name}"
    assert error.message.startswith(f"{HEADER}: {name} must be ")
    assert "canary" not in error.message


def test_whole_float_is_an_integer() -> None:
    parameters = item("max_new_tokens=64.0;seed=-2").parameters
    assert (parameters.max_new_tokens, parameters.seed) == (64, 2**64 - 2)


def test_one_of_ours_given_twice_is_refused() -> None:
    assert refusal("seed=1;seed=2").param == f"{HEADER}: seed"


def test_json_ignores_parameters_in_attributes() -> None:
    (item,) = read_document("application/json", b'{"inputs": "a"}', "max_new_tokens=canary").items
    assert item.parameters == Parameters()


def test_lengths_are_named_by_header() -> None:
    assert item().name_of("max_new_tokens") == f"{HEADER}: max_new_tokens"


def test_attributes_keep_order_without_surrounding_space() -> None:
    head = RequestHead.parse("invocations", None, " a = 1 ;b=2;a=x=y")
    assert head.attributes == {"a": ["1", "x=y"], "b": ["2"]}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_in_utf_16_is_refused(encoding: str) -> None:
    with pytest.raises(InvalidRequest, match=r"seems to be UTF-(16|32); send it in UTF-8") as caught:
        read_document("text/plain", "The sea is".encode(encoding))
    assert caught.value.param == "body"
