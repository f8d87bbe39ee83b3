"""`scripts/survey-models`: which model types give `model.generate`'s tokens in our batches, by tiny random models."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import msgspec
import transformers
from surveying import readme
from surveying.isolation import try_models
from surveying.trial import LEAN, WHOLE, Result
from surveying.verdicts import NOT_TRIED, SAMPLE, is_as_in_table, make_table, write_table
from tqdm import tqdm

from container.engine.worker.model_table import model_table
from testing.model_zoo import CAUSAL_TYPES, WRAPPER_TYPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; by default all")
    parser.add_argument("--sample", action="store_true", help="try one type of each kind, and compare with the table")
    parser.add_argument("--lean", action="store_true", help="use fewer and shorter prompts, as --sample does")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, each on one thread (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results")
    parser.add_argument("--write", action="store_true", help="renew the table in the engine and in the README")
    options = parser.parse_args()
    if options.write and (options.types or options.sample or options.lean):
        parser.error("--write is for the whole survey")
    if unknown := set(options.types) - {*CAUSAL_TYPES, *WRAPPER_TYPES}:
        parser.error(f"transformers {transformers.__version__} has no {', '.join(sorted(unknown))}")
    types = options.types or (SAMPLE if options.sample else (*CAUSAL_TYPES, *WRAPPER_TYPES))
    results = _try(sorted(set(types) - NOT_TRIED.keys()), lean=options.sample or options.lean, jobs=options.jobs)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    for result in results:
        print(describe(result))
    print(f"{sum(result.is_equal for result in results)} of {len(results)} types are equal")
    if options.write:
        write_table(make_table(results))
        readme.write()
    if options.sample:
        sys.exit(_compare(results))


def _try(types: list[str], *, lean: bool, jobs: int) -> list[Result]:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    results = []
    with tqdm(total=len(types), unit="type", disable=not sys.stderr.isatty()) as bar:
        for result in try_models(types, LEAN if lean else WHOLE, jobs=jobs):
            results.append(result)
            bar.set_postfix_str(result.model_type)
            bar.update()
    return sorted(results, key=lambda result: result.model_type)


def describe(result: Result) -> str:
    """Describe a result in one line."""
    if result.is_equal:
        preempted = f"{result.preemptions} preempted" if result.preemptions else "none preempted"
        ties = f", {result.ties} ties" if result.ties else ""
        return f"{result.model_type}: equal, scores within {result.error:.0e}, {preempted}{ties}"
    if result.refusal:
        return f"{result.model_type}: refused: {result.refusal}"
    if result.failure:
        return f"{result.model_type}: fails ({result.stage}): {result.failure}"
    checks = ", ".join(f"{count} answers {check}" for check, count in result.differing.items())
    return f"{result.model_type}: differs: {checks}; scores within {result.error:.0e}"


def _compare(results: Iterable[Result]) -> int:
    """Print what differs from the table. Return the status to exit with."""
    table = model_table()
    other = [result for result in results if not is_as_in_table(result, table)]
    for result in other:
        print(f"not as in the table: {result.model_type}", file=sys.stderr)
    return 1 if other else 0


if __name__ == "__main__":
    main()
