"""Documents: their dialects, and the errors of those that can't be read at all."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from container.core import Text
from container.dialects.document import JSON_LINES, JSON_LINES_ALIASES, SHAPES, RequestHead
from container.errors import InvalidRequest, UnsupportedMedia
from testing.container.documents import read_document

BODY = b'{"prompt": "Once"}'


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "Application/JSON; charset=UTF-8",
        'application/json;charset="utf-8"',
        "application/vnd.acme+json",
        "application/octet-stream",
        "binary/octet-stream",
    ],
)
def test_json_is_read_under_all_names(content_type: str | None) -> None:
    (item,) = read_document(content_type, BODY, None).items
    assert item.prompt == Text(text="Once")


@pytest.mark.parametrize(
    "content_type",
    ["text/html", "application/x-www-form-urlencoded", "image/png", "application/json; charset=latin-1", "text/csv"],
)
def test_other_content_type_is_told_accepted_ones(content_type: str) -> None:
    with pytest.raises(UnsupportedMedia, match=r"application/json.*application/jsonlines.*text/plain") as caught:
        read_document(content_type, BODY, None)
    assert caught.value.status == 415


@pytest.mark.parametrize("name", sorted(JSON_LINES | JSON_LINES_ALIASES))
def test_content_type_marks_json_lines(name: str) -> None:
    assert RequestHead.parse("invocations", name, None).is_json_lines
    assert RequestHead.parse("invocations", f"{name.upper()}; charset=utf-8", None).is_json_lines


@pytest.mark.parametrize(
    "name", ["application/json", "application/json+lines", "application/json-seq", "text/plain", "", None]
)
def test_other_content_type_marks_no_lines(name: str | None) -> None:
    assert not RequestHead.parse("invocations", name, None).is_json_lines


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"canary",
        b'{"inputs": "canary',
        b'{"inputs": "canary", "parameters": {"temperature": NaN}}',
        b'{"inputs": "canary", "parameters": {"temperature": Infinity}}',
        b'{"inputs": "canary", "parameters": {"temperature": 1e999}}',
        b'{"inputs": "canary\\ud800"}',
        b'{"inputs": "canary\\udc00 and more text"}',
        b'{"inputs": "canary\xff"}',
        b'{"inputs": ' + b"[" * 1_000_000,
        b'{"canary": ' * 100_000,
    ],
)
def test_broken_json_error_quotes_nothing(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON") as caught:
        read_document("application/json", body, None)
    assert "canary" not in caught.value.message
    assert caught.value.__context__ is None or "canary" not in str(caught.value.__context__)


def test_several_documents_are_pointed_to_json_lines() -> None:
    with pytest.raises(InvalidRequest, match="JSON lines"):
        read_document("application/json", BODY + b"\n" + BODY, None)


@pytest.mark.parametrize(
    "document", [{}, {"parameters": {}}, {"inputs": None}, {"inputs": "canary", "prompt": "canary"}]
)
def test_ambiguous_document_is_told_expected_fields(document: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=r"exactly one of inputs .* messages .* and prompt") as caught:
        read_document("application/json", json.dumps(document).encode(), None)
    assert "canary" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"), [("inputs", "a"), ("prompt", "a"), ("messages", [{"role": "user", "content": "a"}])]
)
def test_null_field_of_other_dialect_is_absent(name: str, value: object) -> None:
    alone, among = {name: value}, dict.fromkeys(SHAPES) | {name: value}
    read = [read_document("application/json", json.dumps(document).encode(), None) for document in (alone, among)]
    assert read[0].items == read[1].items


@pytest.mark.parametrize("document", [[], "canary", 3, None, True])
def test_a_document_must_be_an_object(document: object) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        read_document("application/json", json.dumps(document).encode(), None)


def test_byte_order_mark_is_skipped() -> None:
    assert read_document("application/json", b"\xef\xbb\xbf" + BODY, None).items[0].prompt == Text(text="Once")


def test_many_unknown_fields_show_few_names() -> None:
    body = json.dumps({"prompt": "a"} | {f"field{index}": 1 for index in range(200_000)}).encode()
    with pytest.raises(InvalidRequest, match="field4 and 199995 more") as caught:
        read_document("application/json", body, None)
    assert len(caught.value.message) < 500


def test_the_dialects_import_neither_torch_nor_transformers() -> None:
    script = (
        "import sys, container.dialects.batch as b; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
