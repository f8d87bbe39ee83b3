"""The search for policies with its progress, and its result as what can be run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from tqdm import tqdm

from measuring.table import aligned

from .candidates import Candidate, demand_of
from .commands import aws_cli, boto3_calls
from .inputs import Inputs
from .policies import Document, documented, understand
from .report import cells, row_of
from .search import Search
from .simulation import Outcome, simulate
from .workload import Workload

AIM = 0.3
"""Share of the documented policies' cost that the search is expected to save."""


def print_search(
    options: argparse.Namespace,
    workload: Workload,
    inputs: Inputs,
    max_capacity: int,
    draw: Callable[[int], Workload],
) -> list[str]:
    """Search, print the result, and return its texts for the page. `draw` gives other requests of the same kind."""
    base = _simulate(workload, inputs, documented(max_capacity=max_capacity), "documented")
    bound_s = base.percentile_s(95) if options.bound is None else options.bound
    print(f"searching for the cheapest policies with 95 % of the requests waiting at most {bound_s:.0f} s")
    with tqdm(desc="candidates", leave=False, disable=not sys.stderr.isatty()) as bar:
        search = Search(
            workload=workload,
            inputs=inputs,
            max_capacity=max_capacity,
            bound_s=bound_s,
            jobs=options.jobs,
            seed=options.seed,
            on_score=lambda count: bar.update(count - bar.n),
        )
        best, _ = search.run(options.starts)
    document = best.document(max_capacity, demand_of(workload, inputs.concurrency))
    found = _simulate(workload, inputs, document, "found")
    lines = [f"{len(search.scores)} candidates simulated", *_verdict(base, found, bound_s, best)]
    lines += _held_out(options, draw, inputs, max_capacity, document)
    texts = ["\n".join(lines), aws_cli(document, "ENDPOINT", "VARIANT"), boto3_calls(document, "ENDPOINT", "VARIANT")]
    print(aligned(cells([row_of(each, inputs.usd_per_hour) for each in (base, found)])), "", sep="\n")
    print(*texts, sep="\n\n", end="\n\n", flush=True)
    return texts


def _verdict(base: Outcome, found: Outcome, bound_s: float, best: Candidate) -> list[str]:
    saved = 1 - found.instance_s / base.instance_s if base.instance_s else 0.0
    p95_s = found.percentile_s(95)
    if p95_s > bound_s:
        return [f"none keeps the bound; the nearest has a p95 of {p95_s:.0f} s"]
    differences = ", ".join(f"{name}={value}" for name, value in best.differences().items())
    is_enough = "at least" if saved >= AIM else "less than"
    return [
        f"found: {saved:.0%} cheaper than what AWS documents ({is_enough} the {AIM:.0%} that were hoped for), p95 "
        f"{p95_s:.0f} s within {bound_s:.0f} s",
        f"what differs: {differences or 'nothing'}",
    ]


def _held_out(
    options: argparse.Namespace,
    draw: Callable[[int], Workload],
    inputs: Inputs,
    max_capacity: int,
    document: Document,
) -> list[str]:
    """Compare both on requests that the search has not seen. A trace has no others."""
    if options.trace is not None:
        return []
    other = draw(options.seed + 1)
    base = _simulate(other, inputs, documented(max_capacity=max_capacity), "documented")
    found = _simulate(other, inputs, document, "found")
    return [
        f"on other requests of the same kind (seed {options.seed + 1}): {1 - found.instance_s / base.instance_s:.0%} "
        f"cheaper, p95 {found.percentile_s(95):.0f} s instead of {base.percentile_s(95):.0f} s"
    ]


def _simulate(workload: Workload, inputs: Inputs, document: Document, name: str) -> Outcome:
    return simulate(workload, inputs, understand(document), name)
