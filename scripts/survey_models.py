"""`scripts/survey-models`: which types of models give `model.generate`'s tokens in continuous batches."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import transformers
from tqdm import tqdm

from container.engine.worker.model_table import PATH, ModelTable, Verdict, model_table
from surveying.isolation import survey_each
from surveying.readme import write_readme
from surveying.trials import Result
from surveying.types import SAMPLE, surveyed_types
from surveying.verdicts import describe, verdict, verdicts

LIMIT_S = 170.0


def main() -> None:
    options = _options()
    tqdm.monitor_interval = 0  # its thread must not be in a process that forks
    names = list(SAMPLE) if options.sample else options.types or surveyed_types()
    if unknown := sorted(set(names) - set(surveyed_types())):
        sys.exit(f"not surveyed: {', '.join(unknown)}")
    started = time.monotonic()
    results = _survey(names, jobs=options.jobs, limit_s=options.limit, known=_known(options.json), file=options.json)
    equal = sum(result.is_equal for result in results.values())
    print(f"{len(results)} types, {equal} equal, in {time.monotonic() - started:.0f} seconds")
    if options.write:
        types = verdicts(results)
        kept = {} if options.types == [] and not options.sample else dict(model_table().types)
        _write(ModelTable(transformers.__version__, dict(sorted({**kept, **types}.items()))))
    if options.sample:
        sys.exit(_compare_with_table(results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types (default: all)")
    parser.add_argument("--sample", action="store_true", help="twenty types, one of each kind, against the table")
    parser.add_argument("--write", action="store_true", help="write supported.json and the README's section")
    parser.add_argument("--json", type=Path, help="keep results here; a later run goes on with the types it lacks")
    parser.add_argument("--jobs", type=int, default=2, help="types at a time (default: 2)")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for a type (default: %(default).0f)")
    return parser.parse_args()


def _known(file: Path | None) -> dict[str, Result]:
    if file is None or not file.exists():
        return {}
    return msgspec.json.decode(file.read_bytes(), type=dict[str, Result])


def _survey(
    names: Sequence[str], *, jobs: int, limit_s: float, known: dict[str, Result], file: Path | None
) -> dict[str, Result]:
    results = {name: known[name] for name in names if name in known}
    todo = [name for name in names if name not in known]
    with tqdm(total=len(todo), unit="type", disable=None) as bar:
        for name, result in survey_each(todo, jobs=jobs, limit_s=limit_s, note=bar.set_description):
            results[name] = result
            bar.write(f"{name:28} {result.seconds:5.1f} s  {describe(result)}", file=sys.stdout)
            bar.update()
            if file is not None:
                file.write_bytes(msgspec.json.format(msgspec.json.encode({**known, **results}), indent=1))
    return {name: results[name] for name in names}


def _write(table: ModelTable) -> None:
    PATH.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
    write_readme(table)


def _compare_with_table(results: dict[str, Result]) -> int:
    """Tell which types are not as the table has them. Return how many."""
    table = model_table().types
    different = 0
    for name, result in results.items():
        found, known = verdict(name, result), table.get(name, Verdict("it is not in the table"))
        if found != known:
            different += 1
            print(f"{name}: {found.reason or 'equal'}, but in the table: {known.reason or 'equal'}")
    print(f"{different} types are not as in the table")
    return min(different, 1)


if __name__ == "__main__":
    main()
