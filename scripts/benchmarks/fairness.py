"""One prompt beside a long batch: how long it takes, and what it costs the batch.

alone      a batch of 2,000 lines
visited    the same batch, while ten prompts of 32 tokens are sent, one after the other, 32 new tokens each
first      the same, with one new token each: how long until a prompt is done
joining    the same engine fed directly, without HTTP: a full batch of the same rows runs, and the same prompt joins it
           as its last row, at the start of a step

Runs alternate; the tables show medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

from container.engine.messages import EngineConfig, Step, Submit
from container.engine.sequence import Sampling
from container.engine.worker.batch import Batch
from container.engine.worker.model import load
from testing.tiny_models import save_tiny_model

from .serving import Served
from .throughput import Prompt, make_prompts, with_new_prefix

LINES = 2000
VISITORS = 10
NEW_TOKENS = 32
PROMPT_TOKENS = 32


class Visited:
    """`./serve` with a long batch and, now and then, a single prompt."""

    def __init__(self, model_dir: Path, prompts: list[Prompt]) -> None:
        self._served = Served(model_dir, LONGHAUL_DTYPE="float32")
        self._prompts = prompts
        self._visitor = prompts[0]
        self._batches = count()
        self._threads = ThreadPoolExecutor(1)

    def alone(self) -> float:
        """Measure the seconds of the batch alone."""
        return self._batch().result()

    def visited(self, new_tokens: int) -> tuple[float, list[float]]:
        """Measure the seconds of the batch and of each visitor."""
        batch = self._batch()
        self._wait_until_full()
        visits = [self._visit(new_tokens) for _ in range(VISITORS)]
        assert not batch.done(), "the batch ended before the last visitor had come"
        return batch.result(), visits

    def step_s(self) -> float:
        """Return the mean time between a sequence's tokens so far."""
        return self._metric("inter_token_latency_seconds_sum") / self._metric("inter_token_latency_seconds_count")

    def _batch(self) -> Future[float]:
        requests = [
            _request(prompt, prompt.new_tokens) for prompt in with_new_prefix(self._prompts, next(self._batches))
        ]
        body = b"".join(json.dumps(request).encode() + b"\n" for request in requests)
        return self._threads.submit(self._post, body, "application/jsonlines")

    def _visit(self, new_tokens: int) -> float:
        # Made unique: the same request again might be answered from the journal.
        request = _request(self._visitor, new_tokens) | {"user": str(uuid.uuid4())}
        return self._post(json.dumps(request).encode(), "application/json")

    def _post(self, body: bytes, content_type: str) -> float:
        connection = self._served.connect()
        started = time.perf_counter()
        connection.request("POST", "/invocations", body, {"Content-Type": content_type})
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        took = time.perf_counter() - started
        connection.close()
        return took

    def _wait_until_full(self) -> None:
        """Wait until the batch has as many sequences as the server admits, and the first of them are done."""
        before = self._metric("sequences_total")
        while self._metric("sequences_total") < before + 100:
            time.sleep(0.02)

    def _metric(self, name: str) -> float:
        connection = self._served.connect()
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith((f"longhaul_{name} ", f"longhaul_{name}{{"))
        )

    def close(self) -> None:
        self._served.close()
        self._threads.shutdown()


class Joined:
    """The engine's batch in this process, kept full."""

    def __init__(self, model_dir: Path, prompts: list[Prompt]) -> None:
        settings = EngineConfig(model_dir=str(model_dir), dtype="float32")
        loaded = load(settings)
        self._batch = Batch(loaded, settings, on_step=self._take, on_crash=lambda error: sys.exit(str(error)))
        max_running = self._batch.info(loaded, 0.0).max_running
        self._rows = max_running - max_running // 8  # the server gives a batch as many
        self._prompts: Iterator[Prompt] = (prompt for round_ in count() for prompt in with_new_prefix(prompts, round_))
        self._visitor = prompts[0]
        self._ids = count()
        self._visitor_id = -1
        self._joined_at: float | None = None
        self._visits: list[float] = []
        self._finished = 0
        self._open: set[int] = set()
        self._done = threading.Event()
        self._batch.start()

    def visits_s(self) -> list[float]:
        """Measure the seconds of ten prompts, one after the other, each joining at the start of a step."""
        self._visits, self._finished, self._joined_at = [], 0, None
        self._done.clear()
        for _ in range(self._rows):
            self._submit(next(self._prompts))
        self._done.wait()
        return self._visits

    def _take(self, step: Step) -> None:
        """Take the tokens of a step. Called between two steps."""
        for new in step.tokens:
            if new.finish_reason is None:
                continue
            self._finished += 1
            self._open.discard(new.id)
            if new.id == self._visitor_id:
                assert self._joined_at is not None
                self._visits.append(time.perf_counter() - self._joined_at)
                self._joined_at = None
            elif len(self._visits) < VISITORS:
                self._submit(next(self._prompts))
        if len(self._visits) < VISITORS:
            if self._finished >= 100 and self._joined_at is None:
                self._joined_at = time.perf_counter()
                self._visitor_id = self._submit(self._visitor, newcomer=True)
        elif not self._open:
            self._done.set()

    def _submit(self, prompt: Prompt, newcomer: bool = False) -> int:
        id = next(self._ids)
        self._open.add(id)
        self._batch.submit(Submit(id, prompt.ids, Sampling(max_new_tokens=prompt.new_tokens), newcomer))
        return id

    def close(self) -> None:
        self._batch.stop()


def _request(prompt: Prompt, new_tokens: int) -> dict[str, object]:
    return {"prompt": prompt.ids, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=5)


def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        save_tiny_model(Path(directory), options.model)
        return _measure(options, Path(directory))


def _measure(options: argparse.Namespace, model_dir: Path) -> dict[str, Any]:
    prompts = [Prompt(prompt.ids, 16 + prompt.new_tokens % 48) for prompt in make_prompts(LINES, options.model, 1)]
    visitor = next(prompt.ids for prompt in prompts if len(prompt.ids) >= PROMPT_TOKENS)[:PROMPT_TOKENS]
    prompts[0] = Prompt(visitor, NEW_TOKENS)
    visited, joined = Visited(model_dir, prompts), Joined(model_dir, prompts)
    results: dict[str, list[float]] = {name: [] for name in ("alone_s", "visited_s", "visit_s", "first_s", "joining_s")}
    try:
        for round_ in range(options.runs + 1):
            alone = visited.alone()
            batch, visits = visited.visited(NEW_TOKENS)
            _, firsts = visited.visited(1)
            joining = joined.visits_s()
            print(
                f"round {round_} of {options.runs}: alone {alone:.2f} s, visited {batch:.2f} s,"
                f" visit {statistics.median(visits):.3f} s, first {statistics.median(firsts):.3f} s,"
                f" joining {statistics.median(joining):.3f} s",
                file=sys.stderr,
                flush=True,
            )
            if round_:
                results["alone_s"].append(alone)
                results["visited_s"].append(batch)
                results["visit_s"] += visits
                results["first_s"] += firsts
                results["joining_s"] += joining
        step_s = visited.step_s()
    finally:
        visited.close()
        joined.close()
    return _report(results, step_s)


def _report(results: dict[str, list[float]], step_s: float) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in results.items()}
    of_joining = medians["visit_s"] / medians["joining_s"]
    slower = medians["visited_s"] / medians["alone_s"] - 1
    first = medians["first_s"] / step_s
    print(f"a prompt of {PROMPT_TOKENS} + {NEW_TOKENS} tokens beside a batch of {LINES} lines, tiny model:")
    print("| | median | promised |\n|---|---|---|")
    print(f"| takes, of what it takes as the last row of a full batch | {of_joining:.2f} | at most 1.5 |")
    print(f"| is done with its first token after | {first:.1f} steps | 2: the one that runs, and its own |")
    print(f"| {VISITORS} of them make the batch slower by | {slower:.1%} | less than 10 % |")
    ratios = {"visit_of_joining": of_joining, "batch_slower": slower, "first_in_steps": first, "step_s": step_s}
    return results | ratios
