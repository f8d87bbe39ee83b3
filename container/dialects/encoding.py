"""JSON as it is sent: one line, wherever a reader takes lines to end."""

from __future__ import annotations

import msgspec

_LINE_ENDS = {end.encode(): f"\\u{ord(end):04x}".encode() for end in "\x85\u2028\u2029"}
"""Escapes of the characters that end a line for Python's `str.splitlines` and for other readers, and that JSON need not
escape. It escapes the rest of them itself."""


def encode(value: object) -> bytes:
    """Encode `value`, with what it has of encoded JSON (`msgspec.Raw`)."""
    data = msgspec.json.encode(value)
    for end, escape in _LINE_ENDS.items():
        # In UTF-8 these bytes are nothing else, and in JSON such a character is only found inside a string.
        data = data.replace(end, escape)
    return data
