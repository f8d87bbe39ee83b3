"""What bodies are told to be by their beginnings."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.dialects.sniffing import guess, has_lines, unicode_name

LINE = b'{"prompt": "The sea is"}'
MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "body",
    [
        LINE + b"\n" + LINE,
        LINE + b"\r\n" + LINE + b"\r\n",
        LINE + b" \t\n\n  \n" + LINE,
        b"\n\n" + LINE + b"\n" + LINE,
        MARK + LINE + b"\n" + MARK + LINE,
        b"{}\n{}",
        b'{"a": NaN}\n{',
        b'{"a": "torn}\n{"b": 1}',
    ],
)
def test_lines_without_content_type_are_told(body: bytes) -> None:
    assert has_lines(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":\n"The sea is"}',
        b'{\n  "inputs": [\n    {"a": 1},\n    {"b": 2}\n  ]\n}',
        b'{"messages": [\n{"role": "user", "content": "a"}\n]}',
        json.dumps({"messages": [{"a": {}}, {}], "b": {}}, indent=0).encode(),
        b"[" + LINE + b",\n" + LINE + b"]",
        b'"text"',
        b"The sea is\n{",
        LINE + b"\n" + b"garbage",
    ],
)
def test_document_without_content_type_stays_one(body: bytes) -> None:
    assert has_lines(body) is False


@pytest.mark.parametrize("body", [b"", b"\n", MARK, LINE, LINE + b"\n", MARK + LINE + b"\r\n \n" + MARK, b'{"a": 1'])
def test_too_short_a_beginning_tells_nothing(body: bytes) -> None:
    assert has_lines(body) is None


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("batch.jsonl", LINE * 100)
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("batch.jsonl"))
    return file.getvalue()


FILES: dict[str, tuple[bytes, str]] = {
    "UTF-16 with its mark": ((LINE + b"\n").decode().encode("utf-16"), "UTF-16"),
    "UTF-16 as PowerShell writes it": (b"\xff\xfe" + LINE.decode().encode("utf-16-le"), "UTF-16"),
    "UTF-16 without a mark": (LINE.decode().encode("utf-16-le"), "UTF-16"),
    "UTF-16 of the other order": (LINE.decode().encode("utf-16-be"), "UTF-16"),
    "UTF-32": (LINE.decode().encode("utf-32"), "UTF-32"),
    "UTF-32 without a mark": (LINE.decode().encode("utf-32-be"), "UTF-32"),
    "a ZIP archive": (archive(), "ZIP"),
    "a tar archive": (tar(), "tar"),
    "a Parquet file": (b"PAR1\x15\x04\x15\x10", "Parquet"),
    "a PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
    "gzip in gzip": (b"\x1f\x8b\x08\0", "compressed once more (gzip)"),
    "bzip2": (b"BZh91AY&SY", "bzip2"),
    "a pickle": (b"\x80\x04\x95", "pickle"),
    "a JSON array on one line": (b"[" + LINE + b", " + LINE + b"]\n", "a JSON array"),
    "a JSON array over lines": (b"[\n  " + LINE + b",\n  " + LINE + b"\n]\n", "a JSON array"),
    "an object over lines": (b'{\n  "prompt": "The sea is"\n}\n', "one JSON object over several lines"),
    "CSV": (b"id,prompt\n1,The sea is\n2,The sky is\n", "CSV"),
    "CSV of tabs with a mark": (MARK + b"id\tprompt\r\n1\tThe sea is\r\n", "CSV"),
    "HTML": (b"\n<!DOCTYPE html>\n<html><head>", "HTML"),
    "XML": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "XML"),
    "Python's notation": (b"{'prompt': 'The sea is'}\n{'prompt': 'The sky is'}\n", "Python"),
    "old line ends": (LINE + b"\r" + LINE + b"\r", "CR alone"),
}


@pytest.mark.parametrize("name", FILES)
def test_file_of_other_kind_is_named(name: str) -> None:
    body, what = FILES[name]
    named = guess(body)
    assert named is not None and what in named
    assert "sea" not in named


@pytest.mark.parametrize("body", [b"", b"The sea is", b"nonsense\nand more", LINE, b"\xff", bytes(4)])
def test_other_bodies_are_not_guessed(body: bytes) -> None:
    assert guess(body) is None


@pytest.mark.parametrize("text", ["a", "é", "日本", "\N{GRINNING FACE}", "a\0b", ""])
def test_text_in_utf_8_is_no_utf_16(text: str) -> None:
    assert unicode_name(text.encode()) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("{}\n\"\\',[] a"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('{}\n" a'), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from([None, 0, 1, "\t"]), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_no_json_document_is_taken_for_lines(value: object, indent: int | str | None, end: str) -> None:
    document = json.dumps(value, indent=indent).replace("\n", end).encode() + b"\n\n"
    assert not any(has_lines(document[:size]) for size in range(len(document) + 1))
