"""One answer, one line: for every reader of lines, whatever it takes for a line's end."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.core import Completion, Result
from container.dialects.batch import read_line
from container.dialects.encoding import encode
from testing import ROOT
from testing.container.documents import read_document
from testing.fuzzing import fuzz_settings
from testing.sources import read_sources

ENDS = "a\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\\\u2028b"
"""All characters at which Python's `str.splitlines` ends a line."""
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def only_line(written: bytes) -> Any:
    """Return the value of what a reader of lines must take for one line."""
    (line,) = written.decode().splitlines()
    return json.loads(line)


def result(text: str) -> Result:
    completion = Completion(text=text, token_ids=(1,), finish_reason="stop", seed=None)
    return Result(prompt_text="Hi", prompt_tokens=1, completions=(completion,))


def answer(request: dict[str, Any], text: str) -> bytes:
    return read_document("application/json", json.dumps(request).encode()).render([result(text)], "served")


@fuzz_settings(200)
@given(value=st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))))
def test_value_is_encoded_as_one_line(value: dict[str, str]) -> None:
    assert only_line(encode({ENDS: ENDS} | value)) == {ENDS: ENDS} | value


def test_other_characters_stay_as_they_are() -> None:
    value = {"text": "für 日本 \U0001f600 \u2027\u202a\x84\x86\x7f", "number": 1.5}
    assert encode(value) == msgspec.json.encode(value)


@pytest.mark.parametrize("request_", [CHAT, {"prompt": "a"}, {"inputs": "a"}], ids=["chat", "completion", "inputs"])
def test_answer_is_one_line_to_any_reader(request_: dict[str, Any]) -> None:
    assert json.dumps(ENDS)[1:-1] in json.dumps(only_line(answer(request_, ENDS)))


def test_plain_text_keeps_its_lines() -> None:
    call = read_document("text/plain", b"Hi")
    assert call.render([result(ENDS)], "served") == ENDS.encode()


def batch_line(document: dict[str, Any]) -> tuple[Any, Any]:
    """Return what comes back for a line that is right and for the same with an unknown field."""
    body = json.dumps(document, ensure_ascii=False).encode()
    wrong = json.dumps(document | {ENDS: 1}, ensure_ascii=False).encode()
    good, bad = read_line(body, 1), read_line(wrong, 1)
    assert bad.error is not None
    return only_line(good.success([result(ENDS)], "served")), only_line(bad.failure(bad.error))


def test_custom_id_with_line_ends_comes_back() -> None:
    openai = {"custom_id": ENDS, "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    good, bad = batch_line(openai)
    assert good["custom_id"] == bad["custom_id"] == ENDS
    assert good["response"]["body"]["choices"][0]["message"]["content"] == ENDS


def test_bedrock_input_with_line_ends_comes_back() -> None:
    model_input = {"prompt": ENDS}
    good, bad = batch_line({"recordId": ENDS, "modelInput": model_input})
    assert good["modelInput"] == bad["modelInput"] == model_input
    assert good["recordId"] == bad["recordId"] == ENDS


def test_error_that_names_such_field_is_one_line() -> None:
    _, bad = batch_line({"prompt": "a"})
    assert bad["error"]["code"] == "unknown_parameter"


def test_no_other_encoder_writes_answers() -> None:
    folders = ("container/dialects", "container/reader", "container/server")
    sources = [source for folder in folders for source in read_sources(ROOT, folder)]
    encoding = {source.path.name for source in sources if "json.encode(" in source.text}
    assert encoding == {"encoding.py", "wire.py"}, "the latter writes a message"
