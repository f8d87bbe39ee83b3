"""Kinds of bodies, told by their first bytes: the content type may be missing, or say what the body is not."""

from __future__ import annotations

import re
from codecs import BOM_UTF8

SNIFFED_BYTES = 4096
"""Length of the beginning by which a body is told."""
_BLANK = b" \t\r\n"
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a ZIP archive (as Office files are); unpack it"),
    (b"%PDF-", "a PDF; send its text"),
    (b"PAR1", "a Parquet file; export it as JSON lines"),
    (b"ARROW1", "an Arrow file; export it as JSON lines"),
    (b"Obj\x01", "an Avro file; export it as JSON lines"),
    (b"ORC", "an ORC file; export it as JSON lines"),
    (b"SQLite format 3\0", "an SQLite database; export it as JSON lines"),
    (b"\x1f\x8b", "compressed once more (gzip); compress it once"),
    (b"\x28\xb5\x2f\xfd", "compressed once more (zstd); compress it once"),
    (b"BZh", "compressed with bzip2; gzip and zstd are decoded"),
    (b"\xfd7zXZ\0", "compressed with xz; gzip and zstd are decoded"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"\x89PNG", "a PNG image; send text"),
    (b"\xff\xd8\xff", "a JPEG image; send text"),
    (b"\x80\x02", "a Python pickle; write JSON lines"),
    (b"\x80\x03", "a Python pickle; write JSON lines"),
    (b"\x80\x04", "a Python pickle; write JSON lines"),
    (b"\x80\x05", "a Python pickle; write JSON lines"),
    (b"\x93NUMPY", "a NumPy array; write JSON lines"),
)
"""First bytes of files that people send by mistake, each with what it is and what to do."""
_TAR_MARK, _TAR_MARK_AT = b"ustar", 257
_CSV_SEPARATORS = (b",", b";", b"\t")


def has_lines(beginning: bytes | bytearray) -> bool | None:
    """Return whether a body that begins so is JSON lines, or None if more of it is needed.

    One line that is an object, or a bad try of one, and another that begins one: `}`, a line break and `{` can't follow
    one another in any JSON document.
    """
    line, newline, rest = _without_mark(bytes(beginning)).lstrip(_BLANK).partition(b"\n")
    if line and not line.startswith(b"{"):
        return False
    if not newline:
        return None
    if not line.rstrip(_BLANK).endswith(b"}"):
        return False
    rest = rest.lstrip(_BLANK + BOM_UTF8)
    return rest.startswith(b"{") if rest else None


def unicode_name(beginning: bytes) -> str | None:
    """Return the name of the encoding if it is UTF-16 or UTF-32: told by its mark, or by where ASCII has its NULs."""
    if beginning.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    zeros = tuple(not byte for byte in beginning[:4])
    if zeros in ((True, True, True, False), (False, True, True, True)):
        return "UTF-32"
    return "UTF-16" if zeros in ((True, False, True, False), (False, True, False, True)) else None


def guess(beginning: bytes) -> str | None:
    """Return what a body that is no JSON lines seems to be, with what to do about it: "a ZIP archive; unpack it"."""
    return guess_binary(beginning) or _guess_text(_without_mark(beginning).lstrip(_BLANK))


def guess_binary(beginning: bytes) -> str | None:
    """Return the same for a body that is no text in UTF-8."""
    encoding = unicode_name(beginning)
    if encoding is not None:
        return f"{encoding}; save it as UTF-8"
    for magic, what in _MAGIC:
        if beginning.startswith(magic):
            return what
    return "a tar archive; unpack it" if beginning[_TAR_MARK_AT:].startswith(_TAR_MARK) else None


def _guess_text(text: bytes) -> str | None:
    lines = [line.rstrip(_BLANK) for line in text.split(b"\n") if line.strip(_BLANK)]
    if text[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page, perhaps an error's; send what it should have been"
    if text.startswith(b"<"):
        return "XML or HTML; send JSON"
    if text.startswith(b"["):
        return "a JSON array; send its elements, one a line (jq -c '.[]')"
    if b"\n" not in text.rstrip(_BLANK) and b"\r" in text.strip(_BLANK):
        return "text whose lines end with CR alone; end them with LF"
    if re.match(rb"\{\s*'", text):
        return "Python's own notation (repr), in single quotes; write it with json.dumps"
    if text.startswith(b"{") and len(lines) > 1 and not lines[0].endswith(b"}"):
        return "one JSON object over several lines; send it as application/json, or on one line (jq -c .)"
    return _guess_table(lines)


def _guess_table(lines: list[bytes]) -> str | None:
    """Tell CSV by as many separators in the first line as in the second."""
    for separator in _CSV_SEPARATORS:
        counts = [line.count(separator) for line in lines[:2]]
        if len(counts) == 2 and counts[0] == counts[1] > 0 and not lines[0].startswith(b"{"):
            return "CSV; write JSON lines, one object a line"
    return None


def _without_mark(beginning: bytes) -> bytes:
    return beginning.removeprefix(BOM_UTF8)
