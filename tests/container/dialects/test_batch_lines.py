from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from container.core import Completion, Result, Text
from container.dialects.batch import Line, is_blank, name_line, name_long_line, read_line
from container.errors import EngineFailure, RequestError

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
OPENAI = {"custom_id": "mine", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
RESULT = Result(
    prompt_text="Hi",
    prompt_tokens=2,
    completions=(Completion(text="Hello\n", token_ids=(1, 2), finish_reason="stop", seed=None),),
)


def line(document: Any, number: int = 1) -> Line:
    return read_line(json.dumps(document).encode() + b"\n", number)


def success(document: Any) -> Any:
    return only_line(line(document).success([RESULT], "served"))


def failure(read: Line, error: RequestError | None = None) -> Any:
    error = error or read.error
    assert error is not None
    return only_line(read.failure(error))


def only_line(written: bytes) -> Any:
    assert written.endswith(b"\n") and len(written.splitlines()) == 1
    return json.loads(written)


def test_openai_line_gets_openai_batch_answer() -> None:
    answer = success(OPENAI)
    assert answer.keys() == {"id", "custom_id", "response", "error"}
    assert (answer["custom_id"], answer["error"], answer["response"]["status_code"]) == ("mine", None, 200)
    assert ChatCompletion.model_validate(answer["response"]["body"]).choices[0].message.content == "Hello\n"


def test_an_openai_line_may_ask_for_completions() -> None:
    answer = success(OPENAI | {"url": "/v1/completions", "body": {"prompt": "a"}})
    assert answer["response"]["body"]["object"] == "text_completion"


def test_failed_openai_line_repeats_status_and_error() -> None:
    answer = failure(line(OPENAI), EngineFailure("the engine died"))
    assert answer["custom_id"] == "mine"
    assert answer["response"]["status_code"] == 500
    assert answer["response"]["body"]["error"]["message"] == "the engine died"
    assert answer["error"] == {"code": "engine_failed", "message": "the engine died"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"method": "GET"}, "method"),
        ({"url": "/v1/embeddings"}, "url"),
        ({"body": None}, "body"),
        ({"body": "{}"}, "body"),
        ({"body": {}}, "messages"),
        ({"body": CHAT | {"top_p": 2}}, "top_p"),
        ({"priority": 1}, "priority"),
    ],
)
def test_bad_openai_line_keeps_its_name(change: dict[str, Any], param: str | None) -> None:
    answer = failure(line(OPENAI | change))
    assert (answer["custom_id"], answer["response"]["status_code"]) == ("mine", 400)
    assert answer["response"]["body"]["error"]["param"] == param


@pytest.mark.parametrize("name", [None, 3, ""])
def test_an_openai_line_needs_a_name(name: object) -> None:
    error = line(OPENAI | {"custom_id": name}).error
    assert error is not None and error.param == "custom_id"


def test_bedrock_answer_has_input_and_output() -> None:
    record = {"recordId": "CALL0000001", "modelInput": {"inputs": "a"}}
    assert success(record) == record | {"modelOutput": [{"generated_text": "Hello\n"}]}


def test_a_bedrock_line_holds_either_json_dialect() -> None:
    assert success({"recordId": "1", "modelInput": CHAT})["modelOutput"]["object"] == "chat.completion"


def test_bad_bedrock_line_has_input_and_error() -> None:
    record = {"recordId": "1", "modelInput": CHAT | {"top_p": 2}}
    error = {"errorCode": 400, "errorMessage": "top_p must be a number from 0 (the best token) to 1 (off)"}
    assert failure(line(record)) == record | {"error": error}


def test_a_bedrock_input_must_be_an_object() -> None:
    answer = failure(line({"recordId": "1", "modelInput": None}))
    assert answer["error"]["errorMessage"] == "modelInput must be a JSON object"


def test_bedrock_line_without_name_gets_one() -> None:
    assert line({"modelInput": CHAT}, number=12).custom_id == "LINE0000012"


def test_bedrock_input_is_repeated_digit_by_digit() -> None:
    read = read_line(b'{"recordId": "1", "modelInput": {"inputs": "a",\r "parameters": {"temperature": 0.50}}}\r\n', 1)
    written = read.success([RESULT], "served")
    assert b'"modelInput":{"inputs":"a","parameters":{"temperature":0.50}}' in written
    assert len(written.splitlines()) == 1


def test_bare_line_is_answered_in_its_dialect() -> None:
    assert success({"inputs": "a"}) == [{"generated_text": "Hello\n"}]
    assert success(CHAT)["object"] == "chat.completion"


def test_bad_bare_line_gets_error_object() -> None:
    assert failure(line({"inputs": ""}))["error"]["param"] == "inputs"


@pytest.mark.parametrize(
    "bad",
    [b"canary", b"{", b'{"inputs": "canary', b"[]", b"3", b'"canary"', b"null", b"\xff\xfe", b'{"a":' * 100_000],
)
def test_line_without_json_object_names_its_number(bad: bytes) -> None:
    read = read_line(bad, 7)
    assert read.call is None
    answer = failure(read)
    assert (answer["error"]["param"], "canary" in json.dumps(answer)) == ("line 7", False)


def test_crlf_and_byte_order_mark_are_tolerated() -> None:
    read = read_line(b'\xef\xbb\xbf{"inputs": "a"}\r\n', 1)
    assert read.call is not None
    assert read.call.items[0].prompt == Text(text="a")
    read = read_line(b'\xef\xbb\xbf{"recordId": "1", "modelInput": {"inputs": "a"}}\r\n', 1)
    assert read.call is not None


@pytest.mark.parametrize("blank", [b"", b"\n", b"\r\n", b" \t\n", b"\xef\xbb\xbf\r\n"])
def test_blank_lines_are_no_items(blank: bytes) -> None:
    assert is_blank(blank)
    assert not is_blank(b"{}\n")


def test_line_breaks_stay_within_answer_line() -> None:
    assert line({"inputs": "a"}).success([RESULT], "served").count(b"\n") == 1


OPENAI_LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}


@pytest.mark.parametrize(
    "line",
    [
        OPENAI_LINE,
        {"url": "nowhere"},
        {"custom_id": 5},
        {"recordId": "b", "modelInput": {"temperature": 1.0e2}},
        {"recordId": None, "modelInput": 5},
        {"modelInput": {"recordId": "c"}, "custom_id": "a"},
        {"inputs": "a"},
        {},
        [],
        "text",
    ],
)
def test_named_line_matches_read_line(line: object) -> None:
    text = json.dumps(line).encode() + b"\n"
    whole, named, long = read_line(text, 7), name_line(text, 7), name_long_line(text, 7)
    assert (named.form, named.custom_id, named.model_input) == (whole.form, whole.custom_id, whole.model_input)
    assert (long.form, long.custom_id, long.model_input) == (whole.form, whole.custom_id, None)
    assert named.call is None and long.call is None


@pytest.mark.parametrize("text", [b"{nonsense", b'{"custom_id": "\xff"}', b'{"custom_id": "\\ud800"}', b"[" * 100_000])
def test_unreadable_long_line_has_no_name(text: bytes) -> None:
    assert name_long_line(text, 7) == Line(form="bare")
    assert name_line(text, 7).error is not None
