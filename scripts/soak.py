"""`scripts/soak container|distinct|endpoint|faults|poisoned|scaling`: everything at once, with faults from a seed."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
from pathlib import Path

from soaking import container, distinct, poisoned, scaling
from soaking.faults import campaign
from testing.endpoint import soak as endpoint

SOAKS = {
    "container": container,
    "distinct": distinct,
    "endpoint": endpoint,
    "faults": campaign,
    "poisoned": poisoned,
    "scaling": scaling,
}


def main() -> None:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--seed", type=int, default=None, help="seed of the requests and faults, to draw the same again"
    )
    common.add_argument("--json", type=Path, help="write the measures to this file")
    parser = argparse.ArgumentParser(description=__doc__)
    soaks = parser.add_subparsers(dest="soak", required=True)
    for name, module in SOAKS.items():
        preformatted = argparse.RawDescriptionHelpFormatter
        module.add_options(
            soaks.add_parser(name, description=module.__doc__, formatter_class=preformatted, parents=[common])
        )
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in {*SOAKS, "-h", "--help"}:
        arguments = ["container", *arguments]
    options = parser.parse_args(arguments)
    if options.seed is None and options.soak == "faults":
        options.seed = campaign.ledger_seed(options)
    if options.seed is None:
        options.seed = secrets.randbelow(10**6)
    print(f"seed {options.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # SystemExit ends the servers, too
    faults: list[str] = []
    results = SOAKS[options.soak].run(options, faults)
    if options.json:
        options.json.write_text(json.dumps(results | {"seed": options.seed, "faults": faults}, indent=1))
    print("\nnothing wrong" if not faults else "\nwrong:\n" + "\n".join(faults))
    print(f"seed {options.seed}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
