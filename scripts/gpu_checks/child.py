"""The process of one check: `python -m gpu_checks.child MODULE OUT SETTINGS [ARGUMENT...]`, settings as JSON.

MODULE's `run(settings, *arguments)` returns figures, or raises AssertionError for what is wrong.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from .settings import NotHere, Settings


def run(given: list[str]) -> None:
    """Run the check that the arguments of the program name, and write its outcome as JSON."""
    module, out, settings, *arguments = given
    result = outcome(f"gpu_checks.{module}", read(settings), arguments)
    Path(out).write_text(json.dumps(result))


def read(text: str) -> Settings:
    """Read what `asdict` and JSON made of settings."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()
    }
    return Settings(**values)


def outcome(module: str, settings: Settings, arguments: list[str]) -> dict[str, Any]:
    """Run a check and tell how it ended. What is not foreseen is raised: it ends the process, whose log has it."""
    try:
        figures = importlib.import_module(module).run(settings, *arguments)
    except AssertionError as error:
        return {"status": "failed", "reason": str(error) or "an assertion without words"}
    except NotHere as error:
        return {"status": "not run", "reason": str(error)}
    return {"status": figures.pop("status", "passed"), "figures": figures}


if __name__ == "__main__":
    run(sys.argv[1:])
