"""Functions: how long they are, how many are private, and which of these are used only once."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Sequence

from testing.sources import Finding, Function, Source, functions_of


def lengths(sources: Sequence[Source]) -> list[int]:
    """Lists the lines of each function, from its `def` to its end; decorators don't count, docstrings do."""
    return [_length(function) for source in sources for function in functions_of(source)]


def private(sources: Sequence[Source]) -> list[Finding]:
    """Finds the private functions: a leading underscore, and not `__both__`. Methods and inner functions count."""
    return [_finding(source, function) for source, function in _private(sources)]


def private_and_used_once(sources: Sequence[Source]) -> list[Finding]:
    """Finds the private functions whose name is used exactly once in all of `sources` (one package).

    A use is a name that is read or written, an attribute of that name on any object, or the name in a
    `from … import`. Definitions don't count. So a private name that two classes define is used once only if both
    together are; one that is never used is not counted.
    """
    uses = Counter(name for source in sources for name in _uses(source))
    return [_finding(source, function) for source, function in _private(sources) if uses[function.name] == 1]


def _private(sources: Sequence[Source]) -> Iterator[tuple[Source, Function]]:
    for source in sources:
        for function in functions_of(source):
            if function.name.startswith("_") and not function.name.endswith("__"):
                yield source, function


def _uses(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield name
            case ast.ImportFrom(names=aliases):
                yield from (alias.name for alias in aliases)


def _length(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def _finding(source: Source, function: Function) -> Finding:
    return Finding(path=source.path, line=function.lineno, text=f"{function.name} ({_length(function)} lines)")
