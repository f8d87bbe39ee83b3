"""Figures as an aligned table of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from testing.sources import PACKAGES

from .figures import SUM_COLUMN, TESTS_COLUMN, Figure, Row

COLUMNS = (*PACKAGES, SUM_COLUMN)


def one_tree(rows: Mapping[str, Row]) -> str:
    """Lays out the figures of one checkout, a column for each package. What tests have is in the last column."""
    lines = [["", *COLUMNS]]
    for name, row in rows.items():
        lines.append([name, *(_text(_cell(row, column)) for column in COLUMNS)])
    return aligned(lines)


def two_trees(before: Mapping[str, Row], after: Mapping[str, Row]) -> str:
    """Lays out the figures of two checkouts, for each package a column before and a column after."""
    lines = [["", *(part for column in COLUMNS for part in (column, ""))]]
    lines.append(["", *("before", "after") * len(COLUMNS)])
    for name, row in after.items():
        old = before.get(name, {})
        cells = [_text(_cell(figures, column)) for column in COLUMNS for figures in (old, row)]
        lines.append([name, *cells])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Pads the cells of each column to one width: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _cell(row: Row, column: str) -> Figure | None:
    return row.get(column, row.get(TESTS_COLUMN) if column == SUM_COLUMN else None)


def _text(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return f"{figure:,}"
