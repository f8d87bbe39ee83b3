"""`scripts/figures [TREE]`: the figures of a checkout's code, as a table, as JSON or as lists of findings."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path

from measuring import table
from measuring.figures import LISTS, list_findings, measure

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Prints what the command line asks for."""
    options = _options()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # so that `| head` ends it quietly
    if options.list is not None:
        print("\n".join(list_findings(options.tree, options.list)))
        return
    after = measure(options.tree)
    before = None if options.compare is None else measure(options.compare)
    if options.json:
        print(json.dumps(after if before is None else {"before": before, "after": after}, indent=1))
    else:
        print(table.one_tree(after) if before is None else table.two_trees(before, after))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/figures", description="Figures of a checkout's code.")
    parser.add_argument("tree", nargs="?", type=Path, default=ROOT, help="a checkout, old or new; this one by default")
    parser.add_argument(
        "--compare", type=Path, metavar="BEFORE", help="an older checkout, for columns before and after"
    )
    parser.add_argument("--list", choices=LISTS, help="print each finding of this kind with its file and line")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
