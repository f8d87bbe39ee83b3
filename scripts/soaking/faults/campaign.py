"""Faults against `./serve`, one scenario after another; every answer is compared with an undisturbed server's.

{scenarios}

The same seed draws the same runs: `--seed S --only NAME --from K --runs 1` repeats run K alone. With `--ledger FILE` a
campaign can be continued: the file has its seed, and runs that have passed are skipped.
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
from .errors import CannotRun, CheckFailed
from .testbed import Run, Testbed
from .verdicts import Verdict, VerdictFile, format_table, read_verdicts


class Scenario(Protocol):
    """A module of this folder. Its runs count from 1."""

    RUNS: int
    __doc__: str | None

    def play(self, run: Run) -> None:
        """Run it once. Raise CheckFailed or CannotRun."""


SCENARIOS: dict[str, Scenario] = {
    "kills": kills,
    "container": container,
    "deadlines": deadlines,
    "stalls": stalls,
    "poison": poison,
    "server": server,
    "shutdown": shutdown,
    "writers": writers,
    "identical": identical,
    "store": store,
    "traffic": traffic,
}
_LINES = "\n".join(f"{name:<10}  {(module.__doc__ or '').splitlines()[0]}" for name, module in SCENARIOS.items())
__doc__ = __doc__.format(scenarios=_LINES)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), metavar="NAME", help="run these scenarios only")
    parser.add_argument("--runs", type=int, help="runs of each scenario, instead of its own number")
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="K", help="the first run of each scenario")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="keep verdicts in FILE, and continue from it")
    parser.add_argument("--broken-s", type=float, default=60.0, help="seconds for which a journal's store is broken")


def ledger_seed(options: argparse.Namespace) -> int | None:
    """Return the seed of the campaign in the ledger, or None without one."""
    verdicts = read_verdicts(options.ledger)
    return verdicts[-1].seed if verdicts else None


def run(options: argparse.Namespace, faults: list[str]) -> dict[str, Any]:
    file, verdicts = VerdictFile(options.ledger), list[Verdict]()
    directory = Path(tempfile.mkdtemp(prefix="longhaul-soak-"))
    testbed = Testbed(directory, options)
    try:
        due = list(_due_runs(options))
        for done, (scenario, number) in enumerate(due):
            if file.has_passed(scenario, number, options.seed):
                continue
            _show_progress(done, len(due), f"{scenario} {number}", verdicts)
            verdicts.append(_play_run(testbed, scenario, number, options.seed))
            file.add(verdicts[-1])
            _show_verdict(verdicts[-1])
    finally:
        testbed.close()
    failed = [verdict for verdict in verdicts if verdict.outcome == "wrong"]
    faults += [f"{verdict.scenario} run {verdict.run}: {verdict.reason}" for verdict in failed]
    own = [verdict for verdict in file.verdicts if verdict.seed == options.seed]
    print(f"\n{format_table(own)}\n{_ties(testbed, faults)}")
    if faults:
        print(f"the logs of the servers are in {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return {"verdicts": [asdict(verdict) for verdict in own]}


def _due_runs(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    for name in options.only or SCENARIOS:
        count = SCENARIOS[name].RUNS - options.first + 1 if options.runs is None else options.runs
        yield from ((name, number) for number in range(options.first, options.first + count))


def _play_run(testbed: Testbed, scenario: str, number: int, seed: int) -> Verdict:
    began, reason, outcome = time.monotonic(), "", "right"
    run = Run(testbed, scenario, number, seed)
    try:
        SCENARIOS[scenario].play(run)
    except CannotRun as error:
        outcome, reason = "skipped", str(error)
    except CheckFailed as error:
        outcome, reason = "wrong", str(error)
    except Exception as error:
        # An exception from a helper means that the server said something unexpected: as wrong as a bad answer.
        outcome, reason = "wrong", f"{type(error).__name__}: {str(error)[:500]}"
    finally:
        run.close()
    if outcome == "wrong":
        testbed.end_shared_servers()
    else:
        run.delete_files()
    return Verdict(
        scenario=scenario,
        run=number,
        seed=seed,
        outcome=outcome,  # type: ignore[arg-type]
        seconds=round(time.monotonic() - began, 1),
        facts=run.facts,
        reason=reason,
    )


def _ties(testbed: Testbed, faults: list[str]) -> str:
    lines = []
    for model, reference in testbed.reference_servers.items():
        lines.append(f"{model}: {reference.rows} rows compared, {len(reference.ties)} diverged at ties")
        if reference.has_too_many_ties:
            faults.append(f"{lines[-1]}, more than {SHARE_OF_TIES:.0%}")
        lines += [f"  {tie}" for tie in reference.ties]
    return "\n".join(lines)


def _show_progress(done: int, count: int, what: str, verdicts: list[Verdict]) -> None:
    if sys.stdout.isatty():
        bar = "█" * round(20 * done / count)
        wrong = sum(verdict.outcome == "wrong" for verdict in verdicts)
        print(f"\r\x1b[2K{bar:░<20} {done} of {count} runs, {wrong} wrong; {what}", end="", flush=True)


def _show_verdict(verdict: Verdict) -> None:
    start = "\r\x1b[2K" if sys.stdout.isatty() else ""
    print(f"{start}{verdict.scenario} {verdict.run}, seed {verdict.seed}: {verdict}", flush=True)
