"""Simulate requests under several policies, beside an endpoint that is always on and a real-time one."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path

import numpy as np
from tqdm import tqdm

from measuring.table import aligned

from .alternatives import Constant, always_on, real_time
from .examples import EXAMPLES, Example
from .inputs import COLD_STARTS, PRICES_USD_PER_HOUR, ColdStart, Inputs, UnusableInputs
from .policies import Document, documented, read_policies, recommended, understand
from .report import Row, cells, row_of
from .search_report import print_search
from .simulation import Outcome, simulate
from .workload import Service, Workload, read_trace

_DEFAULT_BOUND_S = 60.0


def add_options(parser: argparse.ArgumentParser) -> None:
    requests = parser.add_argument_group("requests")
    requests.add_argument("--example", choices=EXAMPLES, default="office-hours", help="arrivals that are drawn")
    requests.add_argument("--trace", type=Path, help="CSV or JSON lines with arrival_s and, if known, service_s")
    requests.add_argument("--per-hour", type=_not_negative, help="requests an hour, of the example's busy hours")
    requests.add_argument("--days", type=_count, help="days of the example")
    requests.add_argument("--service-mean", type=_positive, help="seconds that a request takes alone, on average")
    requests.add_argument("--service-variation", type=_not_negative, help="their coefficient of variation (log-normal)")
    requests.add_argument("--seed", type=int, default=1, help="seed of what is drawn")
    machine = parser.add_argument_group("instances")
    machine.add_argument("--concurrency", type=_count, help="MaxConcurrentInvocationsPerInstance")
    machine.add_argument(
        "--slowdown", type=_not_negative, default=0.0, help="share by which each neighbour slows a request"
    )
    machine.add_argument(
        "--cold-start", default="slow", help=f"{', '.join(COLD_STARTS)}, or PROVISIONING,IMAGE,MODEL in seconds"
    )
    machine.add_argument("--instance-type", choices=PRICES_USD_PER_HOUR, default="ml.g5.xlarge", help="whose price")
    machine.add_argument("--price", type=_not_negative, help="USD an instance hour, instead of the example price")
    machine.add_argument("--without-journal", action="store_true", help="an ended instance's work is done again")
    policies = parser.add_argument_group("policies")
    policies.add_argument(
        "--policies", action="append", help="documented, recommended, or a JSON file; may be given several times"
    )
    policies.add_argument("--max-capacity", type=_count, help="MaxCapacity, instead of the example's")
    policies.add_argument(
        "--bound",
        type=_not_negative,
        help="seconds of waiting that 95 %% keep: of --search (default: as the documented "
        f"policies) and of the endpoint that is always on (default: {_DEFAULT_BOUND_S:.0f})",
    )
    policies.add_argument("--search", action="store_true", help="search for the cheapest policies within the bound")
    policies.add_argument("--starts", type=_count, default=2, help="candidates from which the search starts")
    policies.add_argument("--jobs", type=_count, default=2, help="processes of the search")
    parser.add_argument("--out", type=Path, default=Path(".simulation"), help="folder for the picture, page and JSON")


def run(options: argparse.Namespace) -> None:
    """Simulate, and print and write what came out. Raises UnusableInputs."""
    started = time.perf_counter()
    example = EXAMPLES[options.example]
    workload, inputs = make_workload(options, example), make_inputs(options, example)
    max_capacity = options.max_capacity or example.max_capacity
    documents = {
        name: _document(name, inputs.concurrency, max_capacity)
        for name in options.policies or ("documented", "recommended")
    }
    facts = describe(workload, inputs, options.cold_start, max_capacity)
    print("\n".join(facts), flush=True)
    outcomes = [_simulate(workload, inputs, name, document) for name, document in documents.items()]
    bound_s = _DEFAULT_BOUND_S if options.bound is None else options.bound
    others = [always_on(workload, inputs, bound_s), real_time(workload, inputs)]
    compared: list[Outcome | Constant] = [*outcomes, *others]
    rows = [row_of(each, inputs.usd_per_hour) for each in compared]
    print(f"\n{aligned(cells(rows))}\n", flush=True)
    texts = []
    if options.search:
        texts = print_search(
            options, workload, inputs, max_capacity, lambda seed: make_workload(options, example, seed)
        )
    write(options.out, workload, outcomes, rows, facts, texts)
    print(f"{time.perf_counter() - started:.1f} s, {_peak_mb():.0f} MB of memory at most in a process")


def make_workload(options: argparse.Namespace, example: Example, seed: int | None = None) -> Workload:
    """Draw the example's requests, or read a trace. Raises UnusableTrace."""
    random = np.random.default_rng(options.seed if seed is None else seed)
    service = Service(
        mean_s=options.service_mean or example.service.mean_s,
        variation=example.service.variation if options.service_variation is None else options.service_variation,
    )
    if options.trace is not None:
        return read_trace(options.trace, service, random)
    return example.draw(
        service,
        random,
        per_hour=example.per_hour if options.per_hour is None else options.per_hour,
        days=options.days or example.days,
    )


def make_inputs(options: argparse.Namespace, example: Example) -> Inputs:
    return Inputs(
        concurrency=options.concurrency or example.concurrency,
        slowdown=options.slowdown,
        cold_start=_cold_start(options.cold_start),
        usd_per_hour=PRICES_USD_PER_HOUR[options.instance_type] if options.price is None else options.price,
        has_journal=not options.without_journal,
    )


def describe(workload: Workload, inputs: Inputs, cold_start: str, max_capacity: int) -> list[str]:
    """Return sentences that say what is simulated."""
    mean_s = float(workload.service_s.mean()) if len(workload) else 0.0
    cold = inputs.cold_start
    return [
        f"{workload.name}: {len(workload):,} requests in {workload.duration_s / 3600:,.0f} hours, {mean_s:.1f} s each "
        f"on average; {inputs.concurrency} at once on an instance, at most {max_capacity} instances",
        f"cold start ({cold_start}): {cold.provisioning_s:.0f} s for the machine, {cold.image_s:.0f} s for the image, "
        f"{cold.model_s:.0f} s for the model; {inputs.usd_per_hour:.3f} USD an hour (an example: prices change)",
    ]


def write(
    folder: Path,
    workload: Workload,
    outcomes: Sequence[Outcome],
    rows: Sequence[Row],
    facts: Sequence[str],
    texts: Sequence[str],
) -> None:
    """Write the picture, the page and the JSON into a folder."""
    from .page import page
    from .plot import as_svg, draw, save_png  # matplotlib takes a second to import

    folder.mkdir(parents=True, exist_ok=True)
    figure = draw(workload, outcomes)
    save_png(figure, folder / "simulation.png")
    title = f"Scaling simulated: {workload.name}"
    (folder / "simulation.html").write_text(page(title, facts, [cells(rows)], as_svg(figure), texts))
    (folder / "simulation.json").write_text(json.dumps([row.as_json() for row in rows], indent=1))
    print(f"written: {folder}/simulation.png, .html and .json")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < inf:
        raise ValueError
    return value


def _not_negative(text: str) -> float:
    return float(text) and _positive(text)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _simulate(workload: Workload, inputs: Inputs, name: str, document: Document) -> Outcome:
    with _progress(name) as on_progress:
        return simulate(workload, inputs, understand(document), name, on_progress)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[float], None]]:
    """Show a bar on a terminal while something runs."""
    with tqdm(total=100, desc=name, unit="%", leave=False, disable=not sys.stderr.isatty()) as bar:
        yield lambda share: bar.update(round(100 * share) - bar.n)


def _document(name: str, concurrency: int, max_capacity: int) -> Document:
    if name == "documented":
        return documented(max_capacity=max_capacity)
    if name == "recommended":
        return recommended(concurrency, max_capacity)
    return read_policies(Path(name))


def _cold_start(text: str) -> ColdStart:
    if text in COLD_STARTS:
        return COLD_STARTS[text]
    try:
        provisioning_s, image_s, model_s = map(float, text.split(","))
    except ValueError:
        raise UnusableInputs(f"--cold-start {text}: neither {', '.join(COLD_STARTS)} nor three numbers") from None
    return ColdStart(provisioning_s=provisioning_s, image_s=image_s, model_s=model_s)


def _peak_mb() -> float:
    """Return the peak memory of this process or of the largest one that it started, in megabytes."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1e3
