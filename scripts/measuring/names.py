"""The names of tests: how many words they have."""

from __future__ import annotations

from pathlib import Path

from testing.sources import Finding, functions_of, read_sources


def find_tests(root: Path) -> list[Finding]:
    """Finds the functions `test_…` in `test_*.py`, in all folders below `tests`. The text is the name."""
    return [
        Finding(path=source.path, line=function.lineno, text=function.name)
        for source in read_sources(root, "tests", "test_*.py")
        for function in functions_of(source)
        if function.name.startswith("test_")
    ]


def words(name: str) -> int:
    """Counts the words of a test's name between its underscores, without the leading `test`."""
    return sum(bool(word) for word in name.removeprefix("test_").split("_"))
