"""Pictures of a simulation: instances over time, and how long requests waited."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .simulation import Outcome
from .workload import HOUR_S, Workload

_COLOURS = ("#1f6feb", "#d9822b", "#2e8b57", "#8250df")
_POINTS = 4000
_SHARES = 500


def draw(workload: Workload, outcomes: Sequence[Outcome]) -> Figure:
    """Draw three panels: arrivals an hour, instances that serve, and the distribution of waiting."""
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    axes = figure.subplots(3, 1)
    end_s = max([workload.duration_s, *(outcome.end_s for outcome in outcomes)])
    hours = max(int(np.ceil(workload.duration_s / HOUR_S)), 1)
    counts, edges = np.histogram(workload.arrivals_s, bins=hours, range=(0, hours * HOUR_S))
    axes[0].stairs(counts, edges / HOUR_S, fill=True, color="#9aa4b2")
    axes[0].set(title=f"{workload.name}: requests an hour", xlim=(0, end_s / HOUR_S))
    times = np.linspace(0, end_s, _POINTS)
    for outcome, colour in zip(outcomes, _COLOURS, strict=False):
        axes[1].step(times / HOUR_S, outcome.serving_at(times), where="post", color=colour, label=outcome.name, lw=1.2)
        shares = np.linspace(0, 100, _SHARES)
        waiting = np.percentile(outcome.waiting_s, shares) if len(outcome.waiting_s) else np.zeros(_SHARES)
        axes[2].plot(waiting / 60, shares, color=colour, label=outcome.name, lw=1.5)
    axes[1].set(title="instances that serve", xlabel="hours", xlim=(0, end_s / HOUR_S))
    axes[1].legend(loc="upper right")
    axes[1].yaxis.get_major_locator().set_params(integer=True)
    axes[2].set(title="share of requests that waited at most so long, %", xlabel="minutes of waiting", ylim=(0, 101))
    axes[2].axhline(95, color="#9aa4b2", lw=0.8, ls=":")
    axes[2].legend(loc="lower right")
    for axis in axes:
        axis.grid(visible=True, color="#e4e7eb", lw=0.6)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=110)


def as_svg(figure: Figure) -> str:
    """Return the picture as an element for a page, which needs nothing from elsewhere."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "longhaul", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
