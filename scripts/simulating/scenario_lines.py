"""Scenarios as JSON lines in, results as JSON lines out: for programs, and for tests.

A scenario has `arrivals_s` and `service_s` (lists of seconds), `duration_s`, `policies` (a document, or "documented" or
"recommended"), and fields of `Inputs` and, below `platform` and `cold_start`, of these.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any, TextIO

import numpy as np

from .inputs import COLD_STARTS, ColdStart, Inputs, Platform, UnusableInputs
from .policies import Document, documented, recommended, understand
from .report import row_of
from .simulation import simulate
from .workload import Workload

_NAMES = {each.name for each in fields(Inputs)} - {"platform", "cold_start"}


def answer(source: TextIO, target: TextIO) -> None:
    """Answer each line with one line: a result, or an object with `error`."""
    for line in source:
        try:
            result = simulate_scenario(json.loads(line))
        except (UnusableInputs, KeyError, TypeError, ValueError) as error:
            result = {"error": repr(error)}
        print(json.dumps(result), file=target, flush=True)


def simulate_scenario(scenario: dict[str, Any]) -> dict[str, Any]:
    """Simulate a scenario. Raises UnusableInputs, KeyError, TypeError or ValueError."""
    inputs = _inputs(scenario)
    workload = Workload(
        name="scenario",
        duration_s=float(scenario["duration_s"]),
        arrivals_s=np.array(scenario["arrivals_s"], dtype=np.float64),
        service_s=np.array(scenario["service_s"], dtype=np.float64),
    )
    outcome = simulate(workload, inputs, understand(_document(scenario["policies"], inputs.concurrency)))
    return {
        "row": row_of(outcome, inputs.usd_per_hour).as_json(),
        "waiting_s": outcome.waiting_s.tolist(),
        "times_served": list(outcome.times_served),
        "instances": [asdict(each) for each in outcome.instances],
        "changes": [asdict(each) for each in outcome.changes],
        "end_s": outcome.end_s,
    }


def _inputs(scenario: dict[str, Any]) -> Inputs:
    cold = scenario.get("cold_start", "slow")
    return Inputs(
        **{name: scenario[name] for name in _NAMES & scenario.keys()},
        cold_start=COLD_STARTS[cold] if isinstance(cold, str) else ColdStart(**cold),
        platform=Platform(**scenario.get("platform", {})),
    )


def _document(given: str | Document, concurrency: int) -> Document:
    if given == "documented":
        return documented()
    if given == "recommended":
        return recommended(concurrency)
    if isinstance(given, str):
        raise UnusableInputs(f"policies {given!r}: neither documented, recommended nor a document")
    return given
