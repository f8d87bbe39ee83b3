"""Results as Markdown tables, for the README."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .runner import Result
from .speed import SYSTEMS

_WORDS = {
    "limit": "the weights' bandwidth limit",
    "engine": "the engine alone",
    "served": "`./serve` over HTTP",
    "library": "`transformers serve --continuous-batching`",
    "static": "static `generate`",
}
_MOST = 160


def checks_table(results: Sequence[Result]) -> str:
    """Return a row for each check, with the beginning of the reason where it did not pass."""
    lines = ["| check | result | seconds |", "|---|---|---|"]
    for result in results:
        reason = " ".join(result.reason.split()).replace("|", "\\|")
        outcome = f"{result.status}: {reason[-_MOST:]}" if reason else result.status
        lines.append(f"| {result.name} | {outcome} | {result.seconds:.0f} |")
    return "\n".join(lines)


def speed_tables(results: Sequence[Result]) -> str:
    """Return a table for each model: new tokens a second by the number of rows, and shares of the limit."""
    measured = [result.figures for result in results if result.status == "measured"]
    shapes = dict.fromkeys(figures["shape"] for figures in measured)
    return "\n\n".join(_speed_table(shape, [f for f in measured if f["shape"] == shape]) for shape in shapes)


def _speed_table(shape: str, measured: list[dict[str, Any]]) -> str:
    by_system = {figures["system"]: figures for figures in measured}
    rows = list(measured[0]["tokens_per_s"])
    limit = by_system.get("limit", {}).get("tokens_per_s", {})
    heads = [f"{count} row{'' if count == '1' else 's'}, tokens/s (of the limit)" for count in rows]
    lines = [f"| {shape} | {' | '.join(heads)} |", "|---" * (len(rows) + 1) + "|"]
    for system in SYSTEMS:
        if system in by_system:
            lines.append(_row(_WORDS[system], by_system[system]["tokens_per_s"], limit, rows))
    decodes = by_system.get("engine", {}).get("decode", {})
    for count, decode in sorted(decodes.items(), key=lambda item: int(item[0])):
        share = f", {decode['tokens_per_s'] / limit[count]:.2f} of the limit" if count in limit else ""
        lines.append(
            f"\nDecoding alone, {count} at once: {decode['tokens_per_s']:,.0f} tokens/s{share}; between two tokens "
            f"{decode['itl_p50_ms']:.2f} ms (p99 {decode['itl_p99_ms']:.2f})."
        )
    return "\n".join(lines)


def _row(name: str, rates: dict[str, float], limit: dict[str, float], rows: list[str]) -> str:
    cells = [
        f"{rates[count]:,.0f} ({rates[count] / limit[count]:.2f})" if count in limit else f"{rates[count]:,.0f}"
        for count in rows
    ]
    return f"| {name} | {' | '.join(cells)} |"
