"""Results as rows of a table: the same in the terminal, in the page and in the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .alternatives import Constant
from .simulation import Outcome

HEADERS = ("", "p50", "p95", "p99", "longest", "instance hours", "USD", "of always on", "not answered", "resumed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One endpoint's measures. Times are seconds, waiting is all of a request's time but the work on it."""

    name: str
    requests: int
    p50_s: float
    p95_s: float
    p99_s: float
    longest_s: float
    instance_hours: float
    usd: float
    peak_instances: int
    unanswered: int
    """Requests that expired, or took longer than a real-time endpoint allows."""
    interruptions: int
    """Requests whose instance was ended while it worked on them."""
    lost_s: float
    """Seconds of work that were done in vain."""
    changes: int
    """Number of times that the capacity was changed."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def row_of(outcome: Outcome | Constant, usd_per_hour: float) -> Row:
    return Row(
        name=outcome.name,
        requests=outcome.requests,
        p50_s=outcome.percentile_s(50),
        p95_s=outcome.percentile_s(95),
        p99_s=outcome.percentile_s(99),
        longest_s=outcome.percentile_s(100),
        instance_hours=outcome.instance_s / 3600,
        usd=outcome.usd(usd_per_hour),
        peak_instances=outcome.peak_instances,
        unanswered=outcome.unanswered,
        interruptions=outcome.interruptions if isinstance(outcome, Outcome) else 0,
        lost_s=outcome.lost_s if isinstance(outcome, Outcome) else 0.0,
        changes=len(outcome.changes) if isinstance(outcome, Outcome) else 0,
    )


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Return the table's lines, the headers first. The row named "always on" is what the others are compared with."""
    base = next((row.usd for row in rows if row.name == "always on"), 0.0)
    lines = [list(HEADERS)]
    for row in rows:
        lines.append(
            [
                f"{row.name} ({row.peak_instances})" if row.name in ("always on", "real time") else row.name,
                duration(row.p50_s),
                duration(row.p95_s),
                duration(row.p99_s),
                duration(row.longest_s),
                f"{row.instance_hours:,.1f}",
                f"{row.usd:,.2f}",
                f"{row.usd / base:.0%}" if base else "",
                f"{row.unanswered:,}",
                f"{row.interruptions:,}",
            ]
        )
    return lines


def duration(seconds: float) -> str:
    """Return seconds as people write them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
