"""The choice of a runner by its name."""

from __future__ import annotations

from endpoint.fleet.runners.engine_runner import EngineRunner
from endpoint.fleet.runners.process_runner import ProcessRunner
from endpoint.fleet.runners.runner import Runner
from endpoint.settings import Settings


def make_runner(name: str, settings: Settings) -> Runner:
    """Return the runner that `--runner` calls `name`."""
    return ProcessRunner(settings) if name == "process" else EngineRunner(settings, name)
