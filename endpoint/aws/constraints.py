"""The constraints of a service's model, and AWS's sentences about values that break them.

Knows shapes (botocore.model.Shape) and values; no requests and no HTTP. The messages follow those that users of
SageMaker have published: path in lower camel case, list positions as `1.member`, values as Java prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import regex

_Test = tuple[Callable[[Any], bool], str]
"""Whether a value keeps a constraint, and the constraint in AWS's words."""

_MAX_TIMES_TOO_LONG = 4
"""Strings longer than this many times their maximum aren't matched against their pattern: some backtrack for long."""
_MAX_MATCHED = 8192
"""Characters of a string without a maximum up to which it is matched against its pattern."""
_ASTRAL_PAIRS = (r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010FFFF")
"""All of the astral planes, as a range of Java's surrogate pairs and as one of characters."""
_POSIX = {"ASCII": r"\x00-\x7F", "Print": r"\x20-\x7E"}


def violations(shape: Any, value: Any, path: str = "") -> Iterator[str]:
    """Yield a sentence for each constraint that `value` breaks. It has the shape's type already."""
    match shape.type_name:
        case "structure":
            required = shape.required_members
            for name, member in shape.members.items():
                inner = value.get(name)
                if inner is None and name not in required:
                    continue
                inner_path = f"{path}.{name[:1].lower()}{name[1:]}" if path else f"{name[:1].lower()}{name[1:]}"
                yield from [_null(inner_path)] if inner is None else violations(member, inner, inner_path)
        case "list":
            yield from _own_violations(shape, value, path)
            if shape.member.type_name not in _COLLECTIONS:
                yield from _common_violation(shape.member, value, value, path, "Member must")
                return
            for position, inner in enumerate(value, 1):
                inner_path = f"{path}.{position}.member"
                yield from [_null(inner_path)] if inner is None else violations(shape.member, inner, inner_path)
        case "map":
            yield from _own_violations(shape, value, path)
            yield from _common_violation(shape.key, list(value), value, path, "Map keys must")
            if shape.value.type_name not in _COLLECTIONS:
                yield from _common_violation(shape.value, list(value.values()), value, path, "Map value must")
                return
            for key, inner in value.items():
                inner_path = f"{path}.{key}.member"
                yield from [_null(inner_path)] if inner is None else violations(shape.value, inner, inner_path)
        case _:
            yield from _own_violations(shape, value, path)


_COLLECTIONS = ("structure", "list", "map")


@cache
def java_pattern(pattern: str) -> regex.Pattern[str]:
    r"""Translate a Java regular expression, to be used with fullmatch.

    Differs from Java in `\s` and `\w`, which know Unicode here.
    """
    pattern = pattern.replace(*_ASTRAL_PAIRS)
    translated: list[str] = []
    in_class = False
    position = 0
    while position < len(pattern):
        step = pattern[position : position + 2] if pattern[position] == "\\" else pattern[position]
        if posix := regex.match(r"\\p\{(ASCII|Print)\}", pattern, pos=position):
            step, ranges = posix[0], _POSIX[posix[1]]
            translated.append(ranges if in_class else f"[{ranges}]")
        elif step == r"\d":
            translated.append("0-9" if in_class else "[0-9]")
        elif step == r"\z":
            translated.append(r"\Z")
        else:
            if step in "[]":
                in_class = step == "["
            translated.append(step)
        position += len(step)
    return regex.compile("".join(translated))


def java_string(value: Any) -> str:
    """Print a value as a Java service does, so that a message reads as AWS's."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(java_string, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}={java_string(inner)}' for key, inner in value.items())}}}"
    return str(value)


def _own_violations(shape: Any, value: Any, path: str) -> Iterator[str]:
    """Yield those of the value's own constraints, not of what is in it."""
    for holds, constraint in _tests(shape):
        if not holds(value):
            is_sensitive = shape.metadata.get("sensitive") or shape.type_name == "blob"
            yield _sentence(None if is_sensitive else value, path, constraint)


def _common_violation(shape: Any, scalars: list[Any], collection: Any, path: str, subject: str) -> Iterator[str]:
    """Yield all constraints of the scalars, in brackets, if one breaks any: AWS doesn't say which one it was."""
    tests = _tests(shape)
    if any(scalar is None for scalar in scalars):
        yield _sentence(collection, path, f"{subject} satisfy constraint: [Member must not be null]")
    elif any(not holds(scalar) for scalar in scalars for holds, _ in tests):
        constraints = ", ".join(text for _, text in tests)
        yield _sentence(collection, path, f"{subject} satisfy constraint: [{constraints}]")


@cache
def _tests(shape: Any) -> list[_Test]:
    """Return the shape's constraints in AWS's order: lengths or bounds, then the pattern or the enumeration."""
    metadata = shape.metadata
    least, most = metadata.get("min"), metadata.get("max")
    tests: list[_Test] = []
    if shape.type_name in ("integer", "long", "float", "double"):
        if most is not None:
            tests.append((lambda value: value <= most, f"Member must have value less than or equal to {most}"))
        if least is not None:
            tests.append((lambda value: value >= least, f"Member must have value greater than or equal to {least}"))
        return tests
    if most is not None:
        tests.append((lambda value: len(value) <= most, f"Member must have length less than or equal to {most}"))
    if least:
        tests.append((lambda value: len(value) >= least, f"Member must have length greater than or equal to {least}"))
    if shape.type_name == "string" and (pattern := metadata.get("pattern")):
        matches = java_pattern(pattern).fullmatch
        matched = most * _MAX_TIMES_TOO_LONG if most else _MAX_MATCHED
        tests.append(
            (
                lambda value: len(value) > matched or matches(value) is not None,
                f"Member must satisfy regular expression pattern: {pattern}",
            )
        )
    if values := metadata.get("enum"):
        allowed = frozenset(values)
        tests.append((lambda value: value in allowed, f"Member must satisfy enum value set: [{', '.join(values)}]"))
    return tests


def _null(path: str) -> str:
    return f"Value null at '{path}' failed to satisfy constraint: Member must not be null"


def _sentence(value: Any, path: str, constraint: str) -> str:
    """Return AWS's sentence; without the value if that is None."""
    shown = "Value" if value is None else f"Value '{java_string(value)}'"
    return f"{shown} at '{path}' failed to satisfy constraint: {constraint}"
