"""The members of a line that isn't JSON, as far as they can be read: a bad line, too, is answered under its name."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8

_MAX_BYTES = 1 << 20
"""Length of a line's beginning in which its name is looked for."""
_MARKS = {mark: re.compile(rf"[ \t\r\n]*{re.escape(mark)}[ \t\r\n]*") for mark in "{:,"}
_FIRST_IN_SINGLE_QUOTES = re.compile(r"\s*\{\s*'(\w{1,40})'\s*:\s*'([^'\\]{1,1000})'")
_decoder = json.JSONDecoder(strict=False)
"""Python's own reader, which takes NaN and control characters."""


def read_members(line: bytes) -> dict[str, object]:
    """Return the members that come before the fault, without nulls. None is the value that can't be read."""
    text = line[:_MAX_BYTES].removeprefix(BOM_UTF8).decode("utf-8", "surrogateescape")
    if found := _FIRST_IN_SINGLE_QUOTES.match(text):
        return {found[1]: found[2]}
    members: dict[str, object] = {}
    place, mark = 0, "{"
    try:
        while True:
            name, place = _decoder.raw_decode(text, _skip(text, place, mark))
            if not isinstance(name, str):
                return members
            members[name] = None
            value, place = _decoder.raw_decode(text, _skip(text, place, ":"))
            if value is None:
                del members[name]
            else:
                members[name] = value
            mark = ","
    except (ValueError, RecursionError):  # the fault, or the end
        return members


def _skip(text: str, place: int, mark: str) -> int:
    """Return the place of what follows the mark. Raises ValueError if it isn't the next."""
    found = _MARKS[mark].match(text, place)
    if found is None:
        raise ValueError
    return found.end()
