"""The README's section of models, between its markers, out of the table."""

from __future__ import annotations

import re
from pathlib import Path

from container.engine.worker.model_table import ModelTable
from surveying.families import FAMILIES
from testing import ROOT

README = ROOT / "README.md"
_MARKED = re.compile(r"(<!-- models -->\n).*?(<!-- /models -->)", re.DOTALL)


def write_readme(table: ModelTable, path: Path = README) -> None:
    """Replace what is between the markers."""
    text = path.read_text()
    path.write_text(_MARKED.sub(lambda marks: f"{marks[1]}{models_section(table)}\n{marks[2]}", text))


def models_section(table: ModelTable) -> str:
    equal = sorted(table.equal)
    lines = ["| family | `model_type` of its text model |", "|---|---|"]
    for family, types in FAMILIES.items():
        served = [name for name in types if name in table.equal]
        refused = [name for name in types if name in table.types and name not in table.equal]
        cell = ", ".join(f"`{name}`" for name in served)
        if refused:
            cell += ("; " if cell else "") + "refused: " + ", ".join(f"`{name}`" for name in refused)
        if cell:
            lines.append(f"| {family} | {cell} |")
    lines += ["", f"<details><summary>All {len(equal)} types that are served</summary>", ""]
    lines += [", ".join(f"`{name}`" for name in equal), "", "</details>", ""]
    reasons: dict[str, list[str]] = {}
    for name, verdict in table.types.items():
        if not verdict.is_equal:
            reasons.setdefault(verdict.reason, []).append(name)
    refused_types = sum(map(len, reasons.values()))
    lines += [f"<details><summary>{refused_types} types that are refused, and why</summary>", ""]
    lines += ["| `model_type` | why |", "|---|---|"]
    for reason, names in sorted(reasons.items(), key=lambda item: item[1]):
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {reason.replace('|', '/')} |")
    return "\n".join([*lines, "", "</details>"])
