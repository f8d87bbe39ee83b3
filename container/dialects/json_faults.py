"""Faults of JSON in the words of those who write it: told by the place where reading ended, and never quoted."""

from __future__ import annotations

import re

_PLACE = re.compile(r"\(byte (\d+)\)")
_WINDOW_BYTES = 64
"""Bytes around the fault that are looked at."""
_BEHIND: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"[-+]?nan\b", re.IGNORECASE), "NaN is no JSON: write null"),
    (re.compile(rb"[-+]?inf(inity)?\b", re.IGNORECASE), "Infinity is no JSON: write null, or a number"),
    (re.compile(rb"None\b"), "None is Python's: write null"),
    (re.compile(rb"(True|False)\b"), "True and False are Python's: write true, false"),
    (re.compile(rb"undefined\b"), "undefined is JavaScript's: write null"),
    (re.compile(rb"'"), "JSON has double quotes, not single ones: write it with json.dumps"),
    (re.compile(rb"\xe2\x80[\x98-\x9f]"), "these are typographic quotes: JSON has straight ones"),
    (re.compile(rb"//|/\*|#"), "JSON has no comments"),
    (re.compile(rb"\xc2\xa0|\xe2\x80[\x80-\x8b]|\xef\xbb\xbf"), "there is a space that is none of JSON's"),
    (re.compile(rb"[\x00-\x1f]"), "control characters (line breaks, tabs) are escaped in a string: \\n, \\t"),
    (re.compile(rb"[A-Za-z_]\w*\s*:"), "names are in double quotes"),
)
"""Beginnings of what stands at the fault, each with what is wrong."""


_COMMA_AT_END = "there is a comma at the end, as within an array: one object a line has none"
_SEVERAL = "several values go as JSON lines, one a line"


def explain(document: bytes, reason: str) -> str:
    """Return the reader's reason with what is wrong, where that can be told. The reason has the place: "(byte 5)"."""
    found = _PLACE.search(reason)
    if found is None:
        return reason
    if "escape" in reason:
        return f"{reason}; a backslash itself is written twice"
    place = int(found[1])
    if "trailing characters" in reason:  # whose place is behind the first of them
        what = _COMMA_AT_END if document[place - 1 :][:_WINDOW_BYTES].strip() == b"," else _SEVERAL
        return f"{reason}; {what}"
    # The place of a word or a number may be behind its beginning, and even behind it.
    before = re.search(rb"[-+A-Za-z]*[^\w\"]?\Z", document[max(0, place - 8) : place])
    start = place - (len(before[0]) if before else 0)
    for begin in dict.fromkeys((start, place)):
        behind = document[begin : begin + _WINDOW_BYTES]
        for pattern, what in _BEHIND:
            if pattern.match(behind):
                return f"{reason}; {what}"
    return reason
