"""`scripts/replay record|compare|list`: one build's answers beside another's. Needs nothing but Python."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from replaying.recording import Answer, ask, differences, load, save
from replaying.requests import Request, all_requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("record", "compare"):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        command.add_argument("url", help="of a running server: http://127.0.0.1:8080")
        command.add_argument("--only", metavar="TEXT", default="", help="requests with this text in their names")
    commands.add_parser("list")
    options = parser.parse_args()
    if options.command == "list":
        print("\n".join(request.name for request in all_requests()))
        return
    requests = [request for request in all_requests() if options.only in request.name]
    if options.command == "record":
        answers = ask_all(options.url, requests)
        save(options.file, answers)
        print(f"{len(answers)} answers recorded, {sum(answer.status == 200 for answer in answers)} of them with a 200")
    else:
        sys.exit(compare(load(options.file), options.url, requests))


def ask_all(url: str, requests: list[Request]) -> list[Answer]:
    """Send the requests one after another, so that each server sees them in the same order."""
    answers = []
    for number, request in enumerate(requests, 1):
        answers.append(ask(url, request))
        if sys.stderr.isatty():
            print(f"\r{number} of {len(requests)}", end="", file=sys.stderr, flush=True)
    return answers


def compare(before: dict[str, Answer], url: str, requests: list[Request]) -> int:
    """Tell where the server's answers differ from those recorded before. Return how many do."""
    known = [request for request in requests if request.name in before]
    different = rounded = 0
    for answer in ask_all(url, known):
        found = list(differences(before[answer.name], answer))
        if found:
            different += 1
            print("\n  ".join([answer.name, *found]))
        elif answer.body != before[answer.name].body:
            rounded += 1
    print(f"{len(known)} answers compared: {different} differ, {rounded} only in the last digits of their numbers")
    if unknown := len(requests) - len(known):
        print(f"{unknown} requests have no recorded answer")
    return min(different, 1)


if __name__ == "__main__":
    main()
