"""Scaling to zero and back, by the recommended policies.

kills   `python -m endpoint up` goes through 1→0→1→3→1→0 instances of a small container while it gets SIGKILL at
        moments drawn from the seed, and is started again. It ends with the capacity of an undisturbed cycle; each
        accepted request has one object and its notification; every activity has an end; after the endpoint's deletion
        there is no alarm, target or instance left.
real    0→1→0 with `./serve`: a request that is sent at zero wakes the endpoint and is answered.
resume  three instances of `./serve` each generate a long text when the endpoint is scaled in to one. Each answer is the
        undisturbed one, and the instance that is left takes from the journal what the others have generated.
"""

from __future__ import annotations

import argparse
from typing import Any

from . import scaling_kills, scaling_real, scaling_resume

PARTS = {"kills": scaling_kills.soak, "real": scaling_real.soak, "resume": scaling_resume.soak}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=20, help="of the gateway, in one cycle")
    parser.add_argument("--only", choices=list(PARTS))


def run(options: argparse.Namespace, faults: list[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, soak in PARTS.items():
        if options.only in (None, name):
            print(f"\n{name}", flush=True)
            results[name] = soak(options, faults)
    return results
