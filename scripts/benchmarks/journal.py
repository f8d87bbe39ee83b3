"""Cost of the journal: CPU seconds of the server process per token with and without it, as a share of the engine's.

Two servers, in turns, with the same prompts as in `throughput`. One journals as it does by default, into a directory,
under the name of a job; the other never comes to write anything. The engine knows nothing of a journal: all of its cost
is the server process's.
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
from .throughput import WARM_UP_SHARE, Prompt, make_prompts, with_new_prefix

NEVER_S = 3600


class Effort(NamedTuple):
    """CPU seconds of the two processes."""

    server: float
    engine: float

    def since(self, before: Effort) -> Effort:
        return Effort(self.server - before.server, self.engine - before.engine)


class System:
    """`./serve` with or without a journal."""

    def __init__(self, model_dir: Path, interval_s: float, *, is_named: bool) -> None:
        self._is_named = is_named
        self._served = Served(model_dir, LONGHAUL_DTYPE="float32", LONGHAUL_CHECKPOINT_INTERVAL_S=interval_s)
        self._process = psutil.Process(self._served.process.pid)

    def run(self, prompts: list[Prompt]) -> Effort:
        lines = [
            {"prompt": prompt.ids, "max_tokens": prompt.new_tokens, "temperature": 0, "ignore_eos": True}
            for prompt in prompts
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
        assert counts == [prompt.new_tokens for prompt in prompts], "other work than was asked"
        return effort

    def _effort(self) -> Effort:
        (engine,) = self._process.children()
        return Effort(_cpu_seconds(self._process), _cpu_seconds(engine))

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
    prompts = make_prompts(options.prompts, options.model, options.seed)
    tokens = sum(prompt.new_tokens for prompt in prompts)
    systems = {
        "with": System(options.model, options.interval, is_named=True),
        "without": System(options.model, NEVER_S, is_named=False),
    }
    efforts: dict[str, list[Effort]] = {name: [] for name in systems}
    try:
        for round_ in range(options.runs + 1):
            todo = with_new_prefix(prompts if round_ else prompts[::WARM_UP_SHARE], round_)
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
    server = {name: statistics.median(effort.server for effort in runs) for name, runs in efforts.items()}
    engine = statistics.median(effort.engine for runs in efforts.values() for effort in runs)
    cost = (server["with"] - server["without"]) / engine
    print(f"{tokens} tokens a run; CPU ms a token, medians")
    for name, value in server.items():
        print(f"server {name:7} the journal  {1e3 * value / tokens:.3f}")
    print(f"engine                      {1e3 * engine / tokens:.3f}")
    print(f"the journal costs {cost:.2%} of the engine's CPU seconds per token")
    return {"server": server, "engine": engine, "tokens": tokens, "cost": cost}
