"""`scripts/bench throughput|fairness|memory|journal|guard|acceptance|payloads|alarms|hybrid`, on a quiet machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks import acceptance, alarms, fairness, guard, hybrid, journal, memory, payloads, throughput
from testing import ROOT

MAX_BUSY_PERCENT = 10.0
MEASURES = {
    "throughput": throughput,
    "fairness": fairness,
    "memory": memory,
    "journal": journal,
    "guard": guard,
    "acceptance": acceptance,
    "payloads": payloads,
    "alarms": alarms,
    "hybrid": hybrid,
}


def main() -> None:
    options = _options()
    busy = psutil.cpu_percent(interval=3.0)
    if busy > MAX_BUSY_PERCENT and not options.busy:
        sys.exit(f"the machine is {busy:.0f} % busy; timings need a quiet one (--busy measures all the same)")
    torch.set_grad_enabled(False)
    results: dict[str, Any] = MEASURES[options.measure].run(options)
    if options.json is not None:
        options.json.write_text(json.dumps({options.measure: results, "machine": machine()}, indent=1) + "\n")


def _options() -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", type=Path, help="write the measures to this file")
    common.add_argument("--busy", action="store_true", help="measure although the machine is not quiet")
    common.add_argument("--model", type=Path, default=ROOT / ".models/SmolLM2-135M-Instruct")
    parser = argparse.ArgumentParser(description=__doc__)
    measures = parser.add_subparsers(dest="measure", required=True)
    for name, module in MEASURES.items():
        preformatted = argparse.RawDescriptionHelpFormatter
        module.add_options(
            measures.add_parser(name, description=module.__doc__, formatter_class=preformatted, parents=[common])
        )
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in {*MEASURES, "-h", "--help"}:
        arguments = ["throughput", *arguments]
    return parser.parse_args(arguments)


def machine() -> dict[str, object]:
    return {
        "cpu": next((line.partition(": ")[2] for line in _cpuinfo() if line.startswith("model name")), ""),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


if __name__ == "__main__":
    main()
