"""All figures of a checkout, by name, for each package and for both together."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testing import imports
from testing.sources import PACKAGES, Source, read_sources

from . import functions, names, texts

Figure = int | float
Row = Mapping[str, Figure]
"""One figure of each column that has it: container, endpoint, both, tests."""

SUM_COLUMN = "both"
TESTS_COLUMN = "tests"


@dataclass(slots=True)
class _Package:
    """Sources and counts that the figures of one column are made of, found for each package alone and then added up."""

    sources: list[Source] = field(default_factory=list)
    circles: int = 0
    runtime_circles: int = 0
    modules_in_circles: int = 0
    private: int = 0
    used_once: int = 0

    def add(self, other: _Package) -> None:
        self.sources += other.sources
        self.circles += other.circles
        self.runtime_circles += other.runtime_circles
        self.modules_in_circles += other.modules_in_circles
        self.private += other.private
        self.used_once += other.used_once


def measure(root: Path) -> dict[str, Row]:
    """Measures a checkout: a row for each figure."""
    columns = {name: _measured(read_sources(root, name)) for name in PACKAGES}
    both = _Package()
    for package in columns.values():
        both.add(package)
    columns[SUM_COLUMN] = both
    rows: dict[str, dict[str, Figure]] = {}
    for column, package in columns.items():
        for name, figure in _figures(package).items():
            rows.setdefault(name, {})[column] = figure
    rows |= {name: {TESTS_COLUMN: figure} for name, figure in _test_figures(root).items()}
    return dict(rows)


def _measured(sources: list[Source]) -> _Package:
    found = imports.find_circles(sources)
    return _Package(
        sources=sources,
        circles=len(found),
        runtime_circles=len(imports.find_circles(sources, for_types=False)),
        modules_in_circles=sum(len(circle.modules) for circle in found),
        private=len(functions.private(sources)),
        used_once=len(functions.private_and_used_once(sources)),
    )


def _figures(package: _Package) -> dict[str, Figure]:
    folders = Counter(source.path.parent for source in package.sources)
    lengths = functions.lengths(package.sources)
    found = texts.doc_texts(package.sources)
    fragments = len(texts.starting_with(found, texts.FRAGMENT_STARTS))
    return {
        "product lines": sum(source.lines for source in package.sources),
        "files": len(package.sources),
        "files at the root": sum(count for folder, count in folders.items() if len(folder.parts) == 1),
        "folders": len(folders),
        "most files in one folder": max(folders.values(), default=0),
        "import circles": package.circles,
        "modules in circles": package.modules_in_circles,
        "import circles without TYPE_CHECKING": package.runtime_circles,
        "functions": len(lengths),
        "function lines, median": _median(lengths),
        "function lines, p90": _p90(lengths),
        "private functions": package.private,
        "private functions, % of all": _percent(package.private, len(lengths)),
        "private and used once": package.used_once,
        "private and used once, % of all": _percent(package.used_once, len(lengths)),
        "doc texts": len(found),
        "fragments": fragments,
        "fragments, % of doc texts": _percent(fragments, len(found)),
        "texts that begin with What, Whether, How, Why": len(texts.starting_with(found, texts.QUESTION_STARTS)),
    }


def _test_figures(root: Path) -> dict[str, Figure]:
    counts = [names.words(test.text) for test in names.find_tests(root)]
    return {
        "tests": len(counts),
        "words in a test's name, median": _median(counts),
        "words in a test's name, p90": _p90(counts),
        "words in a test's name, most": max(counts, default=0),
    }


def _median(values: Sequence[int]) -> Figure:
    middle = statistics.median(values) if values else 0
    return int(middle) if middle == int(middle) else middle


def _p90(values: Sequence[int]) -> Figure:
    """Returns the value that nine in ten are not above."""
    return sorted(values)[int(0.9 * (len(values) - 1))] if values else 0


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0


def list_findings(root: Path, kind: str) -> list[str]:
    """Lists the findings of one kind (a key of `LISTS`), a line each."""
    return [line for package in PACKAGES for line in _FOUND[kind](read_sources(root, package))] + (
        _test_names(root) if kind == "names" else []
    )


def _fragments(sources: list[Source]) -> list[str]:
    return [str(text) for text in texts.starting_with(texts.doc_texts(sources), texts.FRAGMENT_STARTS)]


def _private(sources: list[Source]) -> list[str]:
    return [str(function) for function in functions.private_and_used_once(sources)]


def _circles(sources: list[Source]) -> list[str]:
    lines = []
    for circle in imports.find_circles(sources):
        lines.append(f"circle of {len(circle.modules)}: {', '.join(circle.modules)}")
        lines += [f"  {arrow}" for arrow in circle.arrows]
    return lines


def _no_names(sources: list[Source]) -> list[str]:
    return []


def _test_names(root: Path) -> list[str]:
    """Lists all tests, those of the most words first."""
    tests = sorted(names.find_tests(root), key=lambda test: -names.words(test.text))
    return [f"{test.path}:{test.line}: {names.words(test.text)} words: {test.text}" for test in tests]


_FOUND: dict[str, Callable[[list[Source]], list[str]]] = {
    "fragments": _fragments,
    "private": _private,
    "circles": _circles,
    "names": _no_names,
}
LISTS = tuple(_FOUND)
