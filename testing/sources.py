"""The Python files of a checkout, parsed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("container", "endpoint")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One Python file: its path below the checkout, its text and its syntax tree."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """The dotted name it is imported by; a package's own file has the package's name."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def lines(self) -> int:
        """Number of lines, empty ones and comments included."""
        return len(self.text.splitlines())


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A place in the code, with what was found there."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def read_sources(root: Path, folder: str, pattern: str = "*.py") -> list[Source]:
    """Reads the matching files of a folder and of all folders below it, sorted by path."""
    return [_read(root, path) for path in sorted((root / folder).rglob(pattern))]


def _read(root: Path, path: Path) -> Source:
    text = path.read_text()
    return Source(path=path.relative_to(root), text=text, tree=ast.parse(text, str(path)))


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(source: Source) -> Iterator[Function]:
    """Yields every `def` of a file: functions, methods and functions inside functions."""
    for node in ast.walk(source.tree):
        if isinstance(node, Function):
            yield node
