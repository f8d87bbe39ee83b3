"""Lines that can't be read, and the names under which they are answered all the same."""

from __future__ import annotations

import json

import pytest

from container.dialects.batch import name_line, name_long_line, name_torn_line, read_line

HEAD = b'{"custom_id": "mine", "method": "POST", "url": "/v1/completions", "body": '
NAMED: dict[str, tuple[bytes, str]] = {
    "NaN behind the name": (HEAD + b'{"prompt": "a", "temperature": NaN}}', "openai"),
    "NaN before the name": (b'{"body": {"prompt": "a", "temperature": NaN}, "custom_id": "mine"}', "openai"),
    "Infinity": (HEAD + b'{"prompt": "a", "logit_bias": {"5": -Infinity}}}', "openai"),
    "torn in a value": (HEAD + b'{"prompt": "The sea', "openai"),
    "torn behind the name": (b'{"custom_id": "mine"', "openai"),
    "torn behind a comma": (b'{"custom_id": "mine", ', "openai"),
    "without its end": (HEAD + b'{"prompt": "a"}', "openai"),
    "two lines in one": (HEAD + b'{"prompt": "a"}}' + HEAD + b'{"prompt": "a"}}', "openai"),
    "an array's comma": (HEAD + b'{"prompt": "a"}},', "openai"),
    "a line break in a string": (HEAD.replace(b"POST", b"PO\tST") + b'{"prompt": "a\tb"}}', "openai"),
    "no UTF-8 behind the name": (HEAD + b'{"prompt": "caf\xe9"}}', "openai"),
    "nested deeply behind the name": (HEAD + b"[" * 100_000, "openai"),
    "Python's notation": (b"{'custom_id': 'mine', 'method': 'POST', 'body': None}", "openai"),
    "a mark in front": (b"\xef\xbb\xbf" + HEAD + b"NaN}", "openai"),
    "a column of nulls": (b'{"recordId": null, "params": null, "custom_id": "mine", "body": NaN}', "openai"),
    "Anthropic, torn": (b'{"custom_id": "mine", "params": {"max_tokens": 5, "messages": [', "anthropic"),
    "Bedrock, torn": (b'{"recordId": "mine", "modelInput": {"prompt": "The', "bedrock"),
    "Bedrock, NaN": (b'{"modelInput": {"prompt": "a", "temperature": NaN}, "recordId": "mine"}', "bedrock"),
    "a name with escapes": (b'{"custom_id": "m\\u0069ne", "body": ', "openai"),
}


@pytest.mark.parametrize("name", NAMED)
def test_unreadable_line_keeps_its_name(name: str) -> None:
    line, form = NAMED[name]
    for read in (read_line(line, 7), name_line(line, 7)):
        assert (read.form, read.custom_id, read.call) == (form, "mine", None)
        assert read.error is not None and read.error.param == "line 7"
    assert (name_long_line(line, 7).form, name_long_line(line, 7).custom_id) == (form, "mine")


def test_unreadable_line_is_answered_in_its_form() -> None:
    torn = read_line(HEAD + b'{"prompt": "canary', 7)
    assert torn.error is not None
    answer = json.loads(torn.failure(torn.error))
    assert (answer["custom_id"], answer["response"]["status_code"]) == ("mine", 400)
    assert answer["error"]["code"] == "invalid_json"
    torn = read_line(b'{"recordId": "mine", "modelInput": {"prompt": "canary', 7)
    assert torn.error is not None
    answer = json.loads(torn.failure(torn.error))
    assert (answer["recordId"], answer["modelInput"], answer["error"]["errorCode"]) == ("mine", None, 400)
    assert "canary" not in str(answer)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"{",
        b'{"custom_id": "mi',
        b'{"custom_id": 5, "body": NaN}',
        b'{"custom_id": null, "body": ',
        b'{"custom_id": "\\ud83d", "body": NaN}',
        b'{"custom_id": "caf\xe9", "body": NaN}',
        b'["custom_id", "mine"',
        b'{"body": {"custom_id": "not this"}, torn',
        b'{"body": {"custom_id": "not this", torn',
        b'{"prompt": "\\"custom_id\\": \\"not this\\"", torn',
        b'{"inputs": "a", "parameters": {"temperature": NaN}}',
        b"{" * 100_000,
        b'{"a":' * 100_000,
        b"{'inputs': 'a'}",
    ],
    ids=range(16),
)
def test_line_without_readable_name_has_none(line: bytes) -> None:
    torn = name_torn_line(line)
    assert (torn.form, torn.custom_id) == ("bare", None)


def test_only_beginning_of_huge_line_is_searched() -> None:
    behind = b'{"body": "' + b"a" * (2 << 20) + b'", "custom_id": "mine", NaN}'
    assert name_torn_line(behind).custom_id is None
    assert name_torn_line(HEAD + b'"' + b"a" * (2 << 20) + b'", NaN}').custom_id == "mine"


PANDAS = (
    b'{"custom_id":"row-1","method":"POST","url":"\\/v1\\/completions",'
    b'"body":{"prompt":"a \\/ b \\u00e9","max_tokens":5.0,"temperature":null,"stop":null,"seed":null}}\n'
)
"""Line of pandas' `to_json(orient="records", lines=True)`: slashes and what is beyond ASCII are escaped, a missing
value is null, and integers beside one are floats."""


def test_pandas_line_is_read() -> None:
    read = read_line(PANDAS, 1)
    assert (read.error, read.custom_id) == (None, "row-1")
    assert read.call is not None


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\\u2028", "\\r\\n"])
def test_line_separators_in_strings_are_text(separator: str) -> None:
    read = read_line(f'{{"prompt": "a{separator}b"}}\r\n'.encode(), 1)
    assert read.error is None and read.call is not None
