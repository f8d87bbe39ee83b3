"""JSON that is none: what is wrong is said in words, and no word of the request is in them."""

from __future__ import annotations

import pytest

from container.dialects.batch import read_line
from container.errors import InvalidRequest
from testing.container.documents import read_document

FAULTS: dict[str, tuple[bytes, str]] = {
    "NaN": (b'{"prompt": "canary", "temperature": NaN}', "NaN is no JSON: write null"),
    "nan": (b'{"prompt": "canary", "temperature": nan}', "NaN is no JSON: write null"),
    "Infinity": (b'{"prompt": "canary", "temperature": Infinity}', "Infinity is no JSON"),
    "minus Infinity": (b'{"prompt": "canary", "temperature": -Infinity}', "Infinity is no JSON"),
    "minus NaN": (b'{"prompt": "canary", "temperature": -NaN}', "NaN is no JSON: write null"),
    "None": (b'{"prompt": "canary", "stop": None}', "None is Python's"),
    "True": (b'{"prompt": "canary", "ignore_eos": True}', "True and False are Python's"),
    "False in a list": (b'{"prompt": "canary", "a": [False]}', "True and False are Python's"),
    "undefined": (b'{"prompt": "canary", "stop": undefined}', "undefined is JavaScript's"),
    "single quotes": (b"{'prompt': 'canary'}", "double quotes, not single ones"),
    "a single-quoted value": (b"{\"prompt\": 'canary'}", "double quotes, not single ones"),
    "typographic quotes": ("{“prompt”: “canary”}".encode(), "typographic quotes"),
    "a comma before the end": (b'{"prompt": "canary",}', "trailing comma"),
    "a comma at a list's end": (b'{"prompt": ["canary",]}', "trailing comma"),
    "a comment": (b'{"prompt": "canary" // canary\n}', "no comments"),
    "a comment first": (b'# canary\n{"prompt": "canary"}', "no comments"),
    "a block comment": (b'{/* canary */ "prompt": "canary"}', "no comments"),
    "a tab in a string": (b'{"prompt": "canary\tmore"}', "control characters"),
    "a line break in a string": (b'{"prompt": "canary\nmore"}', "control characters"),
    "a name without quotes": (b'{prompt: "canary"}', "names are in double quotes"),
    "a no-break space": ('{"prompt":\u00a0"canary"}'.encode(), "none of JSON's"),
    "UTF-16": ('{"prompt": "canary"}'.encode("utf-16"), "seems to be UTF-16"),
    "a backslash": (b'{"prompt": "canary \\canary"}', "a backslash itself is written twice"),
    "a number too large": (b'{"prompt": "canary", "seed": 1e999}', "a number is out of range"),
    "half a character": (b'{"prompt": "canary \\ud83d"}', "surrogate"),
    "the end in a string": (b'{"prompt": "canary', "it ends within a value"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named_without_quoting_it(name: str) -> None:
    body, what = FAULTS[name]
    with pytest.raises(InvalidRequest, match="the body is not valid JSON") as caught:
        read_document("application/json", body)
    assert what in caught.value.message
    error = read_line(body.replace(b"\n", b" ") if "comment" in name else body, 3).error
    assert error is not None and (error.param, error.code) == ("line 3", "invalid_json")
    assert what in error.message
    assert "canary" not in caught.value.message + error.message


@pytest.mark.parametrize(
    "body", [b"NaNaNa", b"{nancy}", b'{"a": infra}', b'{"prompt": "NaN", 5}', b'{"a": "it is None", ]'], ids=repr
)
def test_other_fault_names_only_its_place(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"\(byte \d+\)$"):
        read_document("application/json", body)


def test_line_of_an_array_is_told_its_comma() -> None:
    error = read_line(b'{"prompt": "canary"},\r\n', 2).error
    assert error is not None and "a comma at the end" in error.message


def test_two_objects_on_one_line_are_told() -> None:
    error = read_line(b'{"prompt": "canary"}{"prompt": "canary"}\n', 2).error
    assert error is not None and "one a line" in error.message
