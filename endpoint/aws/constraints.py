"""The constraints of a service's model, compiled once per shape, and AWS's sentences about values that break them.

Knows shapes and values; no requests and no HTTP. The messages follow those that users of SageMaker have published:
path in lower camel case, list positions as `1.member`, values as Java prints them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import regex

Check = Callable[[Any, str, list[str]], None]
"""(value, path, what is wrong so far): appends to the last. The value has the shape's type already."""
_Test = tuple[Callable[[Any], bool], str]

_TOO_LONG_TO_MATCH = 4
"""A string longer than this many times its maximum isn't matched against its pattern: some backtrack for long."""
_MOST_MATCHED = 8192
_ASTRAL_PAIRS = (r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010FFFF")
"""All of the astral planes, as a range of Java's surrogate pairs and as one of characters."""
_POSIX = {"ASCII": r"\x00-\x7F", "Print": r"\x20-\x7E"}


def compile_check(shape: Any) -> Check:
    """`shape` is a botocore.model.Shape. Recursive shapes are fine."""
    return _compile(shape, {})


def java_pattern(pattern: str) -> regex.Pattern[str]:
    r"""A Java regular expression, to be used with fullmatch.

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
    """As a Java service prints it, so that a message reads as AWS's does."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(java_string, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}={java_string(inner)}' for key, inner in value.items())}}}"
    return str(value)


def _compile(shape: Any, known: dict[str, list[Check]]) -> Check:
    if shape.name in known:  # it contains itself, and is not finished
        later = known[shape.name]
        return lambda value, path, wrong: later[0](value, path, wrong)
    known[shape.name] = cell = []
    match shape.type_name:
        case "structure":
            check = _structure(shape, known)
        case "list":
            check = _list(shape, known)
        case "map":
            check = _map(shape, known)
        case _:
            check = _scalar(shape)
    cell.append(check)
    del known[shape.name]
    return check


def _structure(shape: Any, known: dict[str, list[Check]]) -> Check:
    required = set(shape.required_members)
    members: list[tuple[str, str, bool, Check | None]] = []
    for name, member in shape.members.items():
        check = _compile(member, known) if _is_constrained(member) else None
        if check or name in required:
            members.append((name, name[:1].lower() + name[1:], name in required, check))

    def check_members(value: dict[str, Any], path: str, wrong: list[str]) -> None:
        for name, shown, is_required, check in members:
            inner = value.get(name)
            if inner is not None:
                if check:
                    check(inner, path + shown, wrong)
            elif is_required:
                wrong.append(_null(path + shown))

    def check_structure(value: dict[str, Any], path: str, wrong: list[str]) -> None:
        check_members(value, f"{path}." if path else "", wrong)

    return check_structure


def _list(shape: Any, known: dict[str, list[Check]]) -> Check:
    own = _tester(shape)
    if shape.member.type_name in ("structure", "list", "map"):
        inner = _compile(shape.member, known)

        def check_members(value: list[Any], path: str, wrong: list[str]) -> None:
            own(value, path, wrong)
            for position, member in enumerate(value, 1):
                if member is None:
                    wrong.append(_null(f"{path}.{position}.member"))
                else:
                    inner(member, f"{path}.{position}.member", wrong)

        return check_members
    broken = _broken_within(shape.member)

    def check_scalars(value: list[Any], path: str, wrong: list[str]) -> None:
        own(value, path, wrong)
        if constraint := broken(value):
            wrong.append(_sentence(value, path, f"Member must satisfy constraint: {constraint}"))

    return check_scalars


def _map(shape: Any, known: dict[str, list[Check]]) -> Check:
    """Of the services here, only maps of strings to scalars are known to have constraints."""
    own = _tester(shape)
    broken_keys = _broken_within(shape.key)
    has_scalars = shape.value.type_name not in ("structure", "list", "map")
    broken_values = _broken_within(shape.value) if has_scalars else None
    inner = None if has_scalars else _compile(shape.value, known)

    def check(value: dict[str, Any], path: str, wrong: list[str]) -> None:
        own(value, path, wrong)
        if constraint := broken_keys(list(value)):
            wrong.append(_sentence(value, path, f"Map keys must satisfy constraint: {constraint}"))
        if broken_values and (constraint := broken_values(list(value.values()))):
            wrong.append(_sentence(value, path, f"Map value must satisfy constraint: {constraint}"))
        if inner:
            for key, member in value.items():
                inner(member, f"{path}.{key}.member", wrong)

    return check


def _scalar(shape: Any) -> Check:
    return _tester(shape)


def _tester(shape: Any) -> Check:
    tests = _tests(shape)
    is_sensitive = bool(shape.metadata.get("sensitive")) or shape.type_name == "blob"

    def check(value: Any, path: str, wrong: list[str]) -> None:
        for holds, constraint in tests:
            if not holds(value):
                wrong.append(_sentence(value, path, constraint, is_sensitive))

    return check


def _broken_within(shape: Any) -> Callable[[list[Any]], str | None]:
    """All constraints of the members, in brackets, if a member breaks one: AWS doesn't say which member it was."""
    tests = _tests(shape)
    described = f"[{', '.join(text for _, text in tests)}]"

    def broken(values: list[Any]) -> str | None:
        if any(value is None for value in values):
            return "[Member must not be null]"
        return described if any(not holds(value) for value in values for holds, _ in tests) else None

    return broken


def _tests(shape: Any) -> list[_Test]:
    """In AWS's order: lengths or bounds, then the pattern or the enumeration."""
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
        matches = _cached_pattern(pattern).fullmatch
        matched = most * _TOO_LONG_TO_MATCH if most else _MOST_MATCHED
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


@cache
def _cached_pattern(pattern: str) -> regex.Pattern[str]:
    return java_pattern(pattern)


def _is_constrained(shape: Any) -> bool:
    return shape.type_name in ("structure", "list", "map") or bool(_tests(shape))


def _null(path: str) -> str:
    return f"Value null at '{path}' failed to satisfy constraint: Member must not be null"


def _sentence(value: Any, path: str, constraint: str, is_sensitive: bool = False) -> str:
    shown = "Value" if is_sensitive else f"Value '{java_string(value)}'"
    return f"{shown} at '{path}' failed to satisfy constraint: {constraint}"
