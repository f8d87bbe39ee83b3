"""`scripts/simulate [run]|check-trace|lines`: what scaling policies cost, by the endpoint's own decisions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from simulating import recording, run_command, scenario_lines
from simulating.inputs import UnusableInputs

COMMANDS = ("run", "check-trace", "lines")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    formatter = argparse.ArgumentDefaultsHelpFormatter
    run_command.add_options(commands.add_parser("run", description=run_command.__doc__, formatter_class=formatter))
    check = commands.add_parser("check-trace", description=recording.__doc__)
    check.add_argument("file", type=Path, help="what `python -m endpoint up --record-scaling FILE` wrote")
    commands.add_parser("lines", description=scenario_lines.__doc__)
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in {*COMMANDS, "-h", "--help"}:
        arguments = ["run", *arguments]
    options = parser.parse_args(arguments)
    try:
        if options.command == "check-trace":
            sys.exit(recording.check(options.file))
        elif options.command == "lines":
            scenario_lines.answer(sys.stdin, sys.stdout)
        else:
            run_command.run(options)
    except UnusableInputs as error:
        sys.exit(f"scripts/simulate: {error}")


if __name__ == "__main__":
    main()
