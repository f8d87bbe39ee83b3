"""Cost of the guard against scores that are not numbers, as a share of a decoding step.

Steps with and without the guard take turns in one engine, so that both see the same load and the same lengths. Beside
the difference of the medians, which is as noisy as the steps are, stands the time that the guard itself took.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from container.engine.worker import attention
from container.engine.worker.memory import cpu_count
from container.engine.worker.score_guard import ScoreGuard
from testing.container.hand_turned_engine import Engine

ROWS = (1, 8, 64)
PROMPT_TOKENS = 64
MAX_SHARE = 0.01


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="sequences that run at once")
    parser.add_argument("--steps", type=int, default=100, help="steps with the guard, and as many without it")


def run(options: argparse.Namespace) -> dict[str, Any]:
    model_dir, results = str(options.model), {}
    for rows in options.rows:
        results[str(rows)] = measure(model_dir, rows, options.steps)
        print(f"measured: {rows} rows", file=sys.stderr, flush=True)
    print(
        "| rows | ms a step with the guard | without | the guard itself, ms | of a step | difference of the medians |"
    )
    print("|---|---|---|---|---|---|")
    for name, result in results.items():
        print(
            f"| {name} | {1e3 * result['with']:.2f} | {1e3 * result['without']:.2f} | {1e3 * result['guard']:.4f} "
            f"| {result['share']:.2%} | {result['with'] / result['without'] - 1:+.2%} |"
        )
    highest = max(result["share"] for result in results.values())
    print(f"the guard takes {highest:.2%} of a step at most; the bound is {MAX_SHARE:.0%}")
    return results


def measure(model_dir: str, rows: int, steps: int) -> dict[str, float]:
    """Return the median seconds of a step with and without the guard, and of the guard."""
    new_tokens = 2 * steps + 20
    tokens = rows * (PROMPT_TOKENS + new_tokens + 32)
    engine = Engine(
        model_dir, dtype="float32", threads=cpu_count(), kv_cache_tokens=2 * tokens, max_batch_tokens=max(256, rows)
    )
    draw = torch.Generator().manual_seed(1)
    for id in range(rows):
        ids = torch.randint(1000, 20_000, (PROMPT_TOKENS,), generator=draw).tolist()
        engine.submit(id, ids, max_new_tokens=new_tokens)
    engine.turn_until(lambda: len(engine.output) == rows)
    times: dict[str, list[float]] = {"with": [], "without": []}
    own = Stopwatch()
    for number in range(2 * steps):
        name = ("with", "without")[(number + number // 2) % 2]  # in pairs, of which each has another order
        with own.measuring() if name == "with" else _without_guard():
            started = time.perf_counter()
            engine.turn()
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    guard = statistics.median(own.seconds)
    return medians | {"guard": guard, "share": guard / medians["without"]}


@contextmanager
def _without_guard() -> Iterator[None]:
    with (
        patch.multiple(ScoreGuard, look=lambda self, scores: None, faults=lambda self, rows: {}),
        patch.object(attention, "keep_faults", lambda out, queries, new_keys, plan: None),
    ):
        yield


class Stopwatch:
    """Adds up the time that a step's calls of the guard take."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @contextmanager
    def measuring(self) -> Iterator[None]:
        self.seconds.append(0.0)
        with (
            patch.multiple(ScoreGuard, look=self._timed(ScoreGuard.look), faults=self._timed(ScoreGuard.faults)),
            patch.object(attention, "keep_faults", self._timed(attention.keep_faults)),
        ):
            yield

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            self.seconds[-1] += time.perf_counter() - started
            return result

        return timed
