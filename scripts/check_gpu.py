"""`scripts/check-gpu [--cpu]`: checks and measures of the engine on a GPU, within eight minutes and without network.

Each check runs in a process of its own with a time limit, so that one that hangs takes no other's time. Checks of right
results come first. The results go to a JSON file as they come; the tables at the end are Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from gpu_checks import requirements
from gpu_checks.runner import Check, Result, run_all
from gpu_checks.settings import Settings, for_cpu, for_gpu

TOTAL_S = {"cuda": 465.0, "cpu": 58.0}
"""Seconds for everything: eight minutes, or one, less the start and a process that does not die at once."""
CORRECTNESS = (
    Check("driver", "driver", 30),
    Check("exactness", "exactness", 75),
    Check("half precision", "half_precision", 40),
    Check("kill and resume", "serving", 60, ("killed",)),
    Check("out of memory", "serving", 75, ("out of memory",)),
    Check("graphs and async", "modes", 60),
)
LIMITS_S = {"limit": 20.0, "engine": 50.0, "served": 60.0, "static": 45.0, "library": 60.0}


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="longhaul-gpu-") as folder:
        settings = for_cpu(folder) if options.cpu else for_gpu(folder)
        needed, wanted = requirements.missing(folder, needs_gpu=settings.is_cuda)
        for thing in (*needed, *wanted):
            print(f"missing: {thing}", file=sys.stderr)
        if needed:
            sys.exit("nothing was checked")
        checks = [check for check in all_checks(settings) if _is_wanted(check, options)]
        if not checks:
            sys.exit(f"no such check; there are: {', '.join(check.name for check in all_checks(settings))}")
        results = run_all(
            checks, settings, options.seconds or TOTAL_S[settings.device.partition(":")[0]], _tell(options.json)
        )
    from gpu_checks.table import checks_table, speed_tables

    print(f"{checks_table(results)}\n\n{speed_tables(results)}".rstrip())
    sys.exit(any(result.status in ("failed", "timed out") for result in results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="tiny models on the CPU, in a minute")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="these checks alone; a model's need `make MODEL`")
    parser.add_argument("--json", type=Path, help="write the results to this file as they come")
    parser.add_argument("--seconds", type=float, help="end after so many seconds")
    return parser.parse_args()


def all_checks(settings: Settings) -> list[Check]:
    """List the checks in their order: right results first, then the measures of each model, smallest first."""
    checks = [*CORRECTNESS]
    for shape in settings.shapes:
        checks.append(Check(f"make {shape}", "random_model", 60, (shape,)))
        if shape == settings.shapes[0]:
            checks.append(Check("memory sizing", "memory_sizing", 60, (shape,)))
        for system, limit_s in LIMITS_S.items():
            checks.append(Check(f"{shape} {system}", "speed", limit_s, (shape, system)))
    return checks


def _is_wanted(check: Check, options: argparse.Namespace) -> bool:
    """Return whether to run a check. Without a GPU the slow start of `transformers serve` is worth it by name only."""
    if options.only:
        return check.name in options.only
    return not (options.cpu and check.arguments[-1:] == ("library",))


def _tell(path: Path | None) -> Callable[[list[Result]], None]:
    def told(results: list[Result]) -> None:
        last = results[-1]
        print(f"{last.name}: {last.status} ({last.seconds:.1f} s) {last.reason}", file=sys.stderr, flush=True)
        if path is not None:
            part = path.with_suffix(".part")
            part.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
            part.replace(path)

    return told


if __name__ == "__main__":
    main()
