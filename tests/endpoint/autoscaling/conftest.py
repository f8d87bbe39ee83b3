from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.endpoint.autoscaling_server import AutoscalingServer


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., AutoscalingServer]]:
    """Return a function that starts servers over one data directory, which end with the test."""
    started: list[AutoscalingServer] = []

    def start(**settings: Any) -> AutoscalingServer:
        started.append(AutoscalingServer(tmp_path, **settings))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def server(start: Callable[..., AutoscalingServer]) -> AutoscalingServer:
    return start()
