"""The outcome of each run: one JSON line per run, kept so that a campaign can be continued."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    scenario: str
    run: int
    seed: int
    outcome: Literal["right", "wrong", "skipped"]
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def __str__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        return f"{self.outcome}  {self.reason or facts}; {self.seconds:.0f} s"


class VerdictFile:
    """The ledger file. Without a path, verdicts live as long as the process."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.verdicts = read_verdicts(path)

    def add(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(verdict)) + "\n")

    def has_passed(self, scenario: str, run: int, seed: int) -> bool:
        return any(
            (verdict.scenario, verdict.run, verdict.seed, verdict.outcome) == (scenario, run, seed, "right")
            for verdict in self.verdicts
        )


def read_verdicts(path: Path | None) -> list[Verdict]:
    """Read a ledger, without a last line that a kill has cut off."""
    if path is None or not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [Verdict(**json.loads(line)) for line in lines if line.endswith("}\n")]


def format_table(verdicts: list[Verdict]) -> str:
    """Format the verdicts as a table by scenario. The last verdict of a repeated run counts."""
    verdicts = list({(verdict.scenario, verdict.run): verdict for verdict in verdicts}.values())
    rows = [["scenario", "runs", "right", "wrong", "skipped", "minutes"]]
    for scenario in dict.fromkeys(verdict.scenario for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.scenario == scenario]
        counts = [str(sum(verdict.outcome == outcome for verdict in own)) for outcome in ("right", "wrong", "skipped")]
        rows.append([scenario, str(len(own)), *counts, f"{sum(verdict.seconds for verdict in own) / 60:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
