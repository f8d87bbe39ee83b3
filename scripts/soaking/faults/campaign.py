"""Faults against `./serve`, one scenario after another, every answer compared with an undisturbed server's.

{scenarios}

The same seed draws the same runs: `--seed S --only NAME --from K --runs 1` is run K alone, again. With `--ledger FILE`
a campaign can be continued: its seed is in the file, and what has passed is not run again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from testing.exactness import SHARE_OF_TIES

from . import container, deadlines, identical, kills, poison, server, shutdown, stalls, store, traffic, writers
from .errors import CannotRun, Wrong
from .testbed import Ground, Run
from .verdicts import Verdict, VerdictFile, read, table


class Scenario(Protocol):
    """A module. Its runs count from 1."""

    RUNS: int
    __doc__: str | None

    def play(self, run: Run) -> None:
        """Raises Wrong, or CannotRun."""


SCENARIOS: dict[str, Scenario] = {
    "kills": kills,
    "container": container,
    "deadlines": deadlines,
    "stalls": stalls,
    "poison": poison,
    "edge": server,
    "shutdown": shutdown,
    "writers": writers,
    "identical": identical,
    "store": store,
    "traffic": traffic,
}
_LINES = "\n".join(f"{name:<10}  {(each.__doc__ or '').splitlines()[0]}" for name, each in SCENARIOS.items())
__doc__ = __doc__.format(scenarios=_LINES)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), metavar="NAME", help="these scenarios")
    parser.add_argument("--runs", type=int, help="of each scenario, instead of its own number")
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="K", help="the first run of each scenario")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="keeps each verdict, to continue by")
    parser.add_argument("--broken-s", type=float, default=60.0, help="how long a journal's store is broken")


def seed_of(options: argparse.Namespace) -> int | None:
    """The campaign's that the ledger has begun."""
    begun = read(options.ledger)
    return begun[-1].seed if begun else None


def run(options: argparse.Namespace, faults: list[str]) -> dict[str, Any]:
    file, verdicts = VerdictFile(options.ledger), list[Verdict]()
    directory = Path(tempfile.mkdtemp(prefix="longhaul-soak-"))
    ground = Ground(directory, options)
    try:
        due = list(_due(options))
        for number, (scenario, one) in enumerate(due):
            if file.has_passed(scenario, one, options.seed):
                continue
            _show(number, len(due), f"{scenario} {one}", verdicts)
            verdicts.append(_play(ground, scenario, one, options.seed))
            file.add(verdicts[-1])
            _tell(verdicts[-1])
    finally:
        ground.close()
    faults += [f"{each.scenario} run {each.run}: {each.reason}" for each in verdicts if each.outcome == "wrong"]
    own = [each for each in file.verdicts if each.seed == options.seed]
    print(f"\n{table(own)}\n{_ties(ground, faults)}")
    if faults:
        print(f"what the servers said: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return {"verdicts": [asdict(each) for each in own]}


def _due(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    for name in options.only or SCENARIOS:
        count = SCENARIOS[name].RUNS - options.first + 1 if options.runs is None else options.runs
        yield from ((name, number) for number in range(options.first, options.first + count))


def _play(ground: Ground, scenario: str, number: int, seed: int) -> Verdict:
    began, reason, outcome = time.monotonic(), "", "right"
    one = Run(ground, scenario, number, seed)
    try:
        SCENARIOS[scenario].play(one)
    except CannotRun as error:
        outcome, reason = "skipped", str(error)
    except Wrong as error:
        outcome, reason = "wrong", str(error)
    except Exception as error:
        # What the server says where it should not is as wrong as what is compared.
        outcome, reason = "wrong", f"{type(error).__name__}: {str(error)[:500]}"
    finally:
        one.close()
    if outcome == "wrong":
        ground.end_kept()
    else:
        one.forget()
    return Verdict(
        scenario=scenario,
        run=number,
        seed=seed,
        outcome=outcome,  # type: ignore[arg-type]
        seconds=round(time.monotonic() - began, 1),
        facts=one.facts,
        reason=reason,
    )


def _ties(ground: Ground, faults: list[str]) -> str:
    told = []
    for model, one in ground.all_undisturbed.items():
        told.append(f"{model}: {one.rows} rows compared, {len(one.ties)} diverged at ties")
        if one.has_too_many_ties:
            faults.append(f"{told[-1]}, more than {SHARE_OF_TIES:.0%}")
        told += [f"  {tie}" for tie in one.ties]
    return "\n".join(told)


def _show(done: int, count: int, what: str, verdicts: list[Verdict]) -> None:
    if sys.stdout.isatty():
        bar = "█" * round(20 * done / count)
        wrong = sum(each.outcome == "wrong" for each in verdicts)
        print(f"\r\x1b[2K{bar:░<20} {done} of {count} runs, {wrong} wrong; {what}", end="", flush=True)


def _tell(verdict: Verdict) -> None:
    start = "\r\x1b[2K" if sys.stdout.isatty() else ""
    print(f"{start}{verdict.scenario} {verdict.run}, seed {verdict.seed}: {verdict}", flush=True)
