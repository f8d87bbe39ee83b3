"""The outcomes of all requests, counted, and the findings: what should not have happened."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

MAX_FINDINGS = 50
"""Number of findings kept in full; the rest is only counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong. `request` names the request, which the same seed draws again; its text is not kept."""

    at_s: float
    kind: str
    request: str
    reason: str

    def __str__(self) -> str:
        return f"{self.at_s:6.0f} s  {self.kind} (request {self.request}): {self.reason}"


class Ledger:
    """Counts and findings, written by all client threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """Number of requests by kind and outcome."""
        self.slowest_s: dict[str, float] = {}
        self.findings: list[Finding] = []
        self.finding_count = 0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def count(self, kind: str, outcome: str, seconds: float) -> None:
        with self._lock:
            self.outcomes[kind, outcome] += 1
            self.slowest_s[kind] = max(seconds, self.slowest_s.get(kind, 0.0))

    def find(self, kind: str, reason: str, request: str = "-") -> None:
        with self._lock:
            self.finding_count += 1
            if len(self.findings) < MAX_FINDINGS:
                self.findings.append(Finding(at_s=self.elapsed_s, kind=kind, request=request, reason=reason))

    def total(self, outcome: str | None = None) -> int:
        with self._lock:
            return sum(count for (_, other), count in self.outcomes.items() if outcome in (None, other))

    def table(self) -> str:
        outcomes = sorted({outcome for _, outcome in self.outcomes})
        rows = [["request", *outcomes, "slowest"]]
        for kind in sorted({kind for kind, _ in self.outcomes}):
            counts = [str(self.outcomes[kind, outcome] or "") for outcome in outcomes]
            rows.append([kind, *counts, f"{self.slowest_s[kind]:.1f} s"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)

    def as_json(self) -> dict[str, Any]:
        return {
            "outcomes": [[kind, outcome, count] for (kind, outcome), count in sorted(self.outcomes.items())],
            "slowest_s": self.slowest_s,
            "finding_count": self.finding_count,
            "findings": [asdict(finding) for finding in self.findings],
        }
