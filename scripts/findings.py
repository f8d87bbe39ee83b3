"""Runs the findings about outside software and says whether each still holds: same, changed, or failed to run."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "findings"
TIMEOUT_S = 300.0
RESULTS = {0: "same", 1: "changed"}
"""Results by the exit status of a finding's script. Every other status means that it failed to run."""
FAILED = "failed to run"


def main() -> int:
    """Return 1 if a finding changed, 2 if none changed but one failed to run, else 0."""
    options = _options()
    names = options.names or sorted(path.stem for path in options.folder.glob("*.sh"))
    if not names:
        print(f"there are no findings in {options.folder}")
        return 0
    results = []
    for name in names:
        result, output = run_finding(options.folder / f"{name}.sh", options.timeout)
        print(f"{result:<13}  {name}", flush=True)
        if result != "same":
            print("".join(f"    {line}\n" for line in output.splitlines()), end="", flush=True)
        results.append(result)
    return 1 if "changed" in results else 2 if FAILED in results else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/findings", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a finding's file name without .sh (default: all)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the findings (default: findings/)")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="SECONDS", help="longest that one may take")
    return parser.parse_args()


def run_finding(script: Path, timeout_s: float) -> tuple[str, str]:
    """Run one script in a session of its own. Returns its result and its output.

    At the time limit all its processes are killed; SIGTERM comes first, so that the script can remove its folder.
    """
    if not script.is_file():
        return FAILED, f"there is no {script}"
    process = subprocess.Popen(
        ["bash", str(script)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        output = _end(process)
        return FAILED, f"{output}no end within {timeout_s:g} s"
    except BaseException:
        _end(process)
        raise
    return RESULTS.get(process.returncode, FAILED), output


def _end(process: subprocess.Popen[str], grace_s: float = 5.0) -> str:
    """End all processes of the script's session, and return what they had printed."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        output, _ = process.communicate(timeout=grace_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return output


if __name__ == "__main__":
    sys.exit(main())
