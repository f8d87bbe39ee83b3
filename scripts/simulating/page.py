"""A simulation's results as one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import UTC, datetime

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem .8rem; border-bottom: 1px solid #d8dee6; }
td, th { text-align: right; } td:first-child, th:first-child { text-align: left; }
pre { background: #f4f6f8; padding: 1rem; overflow-x: auto; } svg { max-width: 100%; height: auto; }
"""


def page(
    title: str, facts: Sequence[str], tables: Sequence[Sequence[Sequence[str]]], svg: str, texts: Sequence[str]
) -> str:
    """Return the page: facts as a list, tables with their headers first, the picture, and texts as they are."""
    items = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
    blocks = "".join(f"<pre>{html.escape(text)}</pre>" for text in texts)
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1><ul>{items}</ul>"
        f"{''.join(map(_table, tables))}{svg}{blocks}<p>scripts/simulate, {made}</p></body></html>\n"
    )


def _table(lines: Sequence[Sequence[str]]) -> str:
    header, *rows = lines
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
