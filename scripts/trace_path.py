"""`scripts/trace-path [TREE]`: the way of one small chat through the files of a checkout's server process, measured."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from measuring import paths
from measuring.paths import Way
from measuring.recorded_server import RecordedServer
from measuring.table import aligned

ROOT = Path(__file__).resolve().parent.parent
MODEL = ".models/SmolLM2-135M-Instruct"


def main() -> None:
    """Records the chats and prints, for each path, the one with the fewest moves."""
    options = _options()
    root: Path = options.tree.resolve()
    model_dir: Path = (options.model or root / MODEL).resolve()
    if not model_dir.is_dir():
        sys.exit(f"{model_dir} has no model; scripts/quickstart fetches one, --model names another")
    runs = _record(root, model_dir, options.repeat)
    least = {name: paths.least([run[name] for run in runs]) for name in runs[0]}
    if options.json:
        print(json.dumps({name: _as_json(way, options.verbose) for name, way in least.items()}, indent=1))
    else:
        print(_table(least, runs))
        for name, way in least.items():
            print(f"\n{name}", *_details(way, options.verbose), sep="\n")


def _record(root: Path, model_dir: Path, repeat: int) -> list[dict[str, Way]]:
    """Starts the server, sends a chat to warm it up, then the recorded ones."""
    with RecordedServer(root, model_dir) as server:
        server.chat()
        try:
            return [paths.split(server.record_chat()) for _ in range(repeat)]
        except paths.NotFound as missing:
            sys.exit(f"this tree's path can't be made out: {missing}")


def _table(least: dict[str, Way], runs: list[dict[str, Way]]) -> str:
    lines = [["path", "files", "moves", "distinct moves", "returns", "calls", "moves of each run"]]
    for name, way in least.items():
        figures = (len(way.files), way.moves, way.distinct_moves, way.returns, way.calls)
        lines.append([name, *map(str, figures), " ".join(str(run[name].moves) for run in runs)])
    return aligned(lines)


def _details(way: Way, verbose: bool) -> list[str]:
    lines = [f"  {number:3} {file}" for number, file in enumerate(way.files, 1)]
    if verbose:
        lines += ["", *(f"      {step.what}" for step in way.steps)]
    return lines


def _as_json(way: Way, verbose: bool) -> dict[str, object]:
    figures: dict[str, object] = {
        "files": way.files,
        "moves": way.moves,
        "distinct_moves": way.distinct_moves,
        "returns": way.returns,
        "calls": way.calls,
    }
    return figures | ({"steps": [step.what for step in way.steps]} if verbose else {})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/trace-path", description="The way of one small chat, measured.")
    parser.add_argument("tree", nargs="?", type=Path, default=ROOT, help="a checkout, old or new; this one by default")
    parser.add_argument("--model", type=Path, help=f"the model's directory; TREE/{MODEL} by default")
    parser.add_argument("--repeat", type=int, default=5, help="recorded chats, of which the least counts (default 5)")
    parser.add_argument("--verbose", action="store_true", help="print every call and return, too")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
