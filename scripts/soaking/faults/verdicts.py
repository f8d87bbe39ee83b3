"""What each run came to: one JSON line a run, kept so that a campaign can be continued."""

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
    """Owns the ledger file. Without a path, verdicts live as long as the process."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.verdicts = read(path)

    def add(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(verdict)) + "\n")

    def has_passed(self, scenario: str, run: int, seed: int) -> bool:
        return any(
            (each.scenario, each.run, each.seed, each.outcome) == (scenario, run, seed, "right")
            for each in self.verdicts
        )


def read(path: Path | None) -> list[Verdict]:
    """A last line that a kill has torn is no verdict."""
    if path is None or not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [Verdict(**json.loads(line)) for line in lines if line.endswith("}\n")]


def table(verdicts: list[Verdict]) -> str:
    """Of a run that was repeated, the last verdict counts."""
    verdicts = list({(each.scenario, each.run): each for each in verdicts}.values())
    rows = [["scenario", "runs", "right", "wrong", "skipped", "minutes"]]
    for scenario in dict.fromkeys(each.scenario for each in verdicts):
        own = [each for each in verdicts if each.scenario == scenario]
        counts = [str(sum(each.outcome == outcome for each in own)) for outcome in ("right", "wrong", "skipped")]
        rows.append([scenario, str(len(own)), *counts, f"{sum(each.seconds for each in own) / 60:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
