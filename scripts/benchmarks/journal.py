"""What the journal costs: CPU seconds of the edge per token with it and without it, as a share of the engine's.

Two servers, in turns, with the same prompts as in `throughput`. One journals as it does by default, into a directory,
under the name of a job; the other never gets to writing anything. The engine knows of no journal: all of its cost is
the edge's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from .serving import Served
from .throughput import WARM_UP_SHARE, Job, fresh, make_jobs

NEVER_S = 3600


class Effort(NamedTuple):
    """CPU seconds."""

    edge: float
    engine: float

    def since(self, before: Effort) -> Effort:
        return Effort(self.edge - before.edge, self.engine - before.engine)


class System:
    """`./serve` with or without a journal."""

    def __init__(self, model_dir: Path, interval_s: float, *, is_named: bool) -> None:
        self._is_named = is_named
        self._served = Served(model_dir, LONGHAUL_DTYPE="float32", LONGHAUL_CHECKPOINT_INTERVAL_S=interval_s)
        self._edge = psutil.Process(self._served.process.pid)

    def run(self, jobs: list[Job]) -> Effort:
        lines = [
            {"prompt": job.prompt_ids, "max_tokens": job.new_tokens, "temperature": 0, "ignore_eos": True}
            for job in jobs
        ]
        body = "".join(json.dumps(line) + "\n" for line in lines)
        headers = {"Content-Type": "application/jsonlines"}
        if self._is_named:
            headers["X-Amzn-SageMaker-Custom-Attributes"] = f"job={uuid.uuid4()}"
        before = self._effort()
        connection = self._served.connect()
        connection.request("POST", "/invocations", body, headers)
        answers = [json.loads(line) for line in connection.getresponse().read().splitlines()]
        connection.close()
        effort = self._effort().since(before)
        counts = [answer["usage"]["completion_tokens"] for answer in answers]
        assert counts == [job.new_tokens for job in jobs], "other work than was asked"
        return effort

    def _effort(self) -> Effort:
        (engine,) = self._edge.children()
        return Effort(_cpu_seconds(self._edge), _cpu_seconds(engine))

    def close(self) -> None:
        self._served.close()


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--interval", type=float, default=10.0, metavar="SECONDS", help="between checkpoints")


def run(options: argparse.Namespace) -> dict[str, Any]:
    jobs = make_jobs(options.prompts, options.model, options.seed)
    tokens = sum(job.new_tokens for job in jobs)
    systems = {
        "with": System(options.model, options.interval, is_named=True),
        "without": System(options.model, NEVER_S, is_named=False),
    }
    efforts: dict[str, list[Effort]] = {name: [] for name in systems}
    try:
        for round_ in range(options.runs + 1):
            todo = fresh(jobs if round_ else jobs[::WARM_UP_SHARE], round_)
            for name in sorted(systems, reverse=round_ % 2 == 1):
                effort = systems[name].run(todo)
                print(f"round {round_} of {options.runs}: {name:7} {effort}", file=sys.stderr, flush=True)
                if round_:
                    efforts[name].append(effort)
    finally:
        for system in systems.values():
            system.close()
    return report(efforts, tokens)


def report(efforts: dict[str, list[Effort]], tokens: int) -> dict[str, Any]:
    edge = {name: statistics.median(effort.edge for effort in each) for name, each in efforts.items()}
    engine = statistics.median(effort.engine for each in efforts.values() for effort in each)
    cost = (edge["with"] - edge["without"]) / engine
    print(f"{tokens} tokens a run; CPU ms a token, medians")
    for name, value in edge.items():
        print(f"edge {name:7} the journal  {1e3 * value / tokens:.3f}")
    print(f"engine                    {1e3 * engine / tokens:.3f}")
    print(f"the journal costs {cost:.2%} of the engine's CPU seconds per token")
    return {"edge": edge, "engine": engine, "tokens": tokens, "cost": cost}
