from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from testing import ROOT

# Set before torch loads OpenMP: its threads must not spin at barriers while servers under test need the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The server's tokenizer hides torch from a process that hasn't imported it, and the engine's tests in this one need it.
import torch  # noqa: F401

from testing.exactness import Exactness
from testing.server import Server
from testing.tiny_models import TinyModel, save_tiny_family, save_tiny_model

SLOWEST_FILES = (
    "container/server/test_resumed_requests.py",
    "container/engine/supervisor/test_recovery.py",
    "container/engine/worker/test_batch.py",
    "container/server/test_leaving_clients.py",
    "container/server/test_life.py",
    "container/server/test_deadlines.py",
    "container/server/test_large_bodies.py",
    "container/server/test_dialects.py",
    "container/engine/worker/test_batch_fuzz.py",
    "endpoint/test_journal.py",
    "container/journal/test_job_log.py",
    "container/engine/worker/test_sampler_distributions.py",
    "container/server/test_openapi.py",
    "container/engine/worker/test_exactness.py",
    "container/server/test_hostile_clients.py",
    "endpoint/test_life.py",
    "endpoint/test_scaling.py",
    "endpoint/test_invocations.py",
    "endpoint/fleet/test_fleet.py",
)
"""Files below tests/ that take longest, which start first: a process of pytest-xdist that ended with one would be the
last by a minute."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--image", help="test this Docker image, too (scripts/test-image)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip tests/image without a word if there is no image to test."""
    if collection_path.name == "image" and not config.getoption("--image"):
        return True
    return None


def pytest_configure(config: pytest.Config) -> None:
    if missing := [name for name in SLOWEST_FILES if not (ROOT / "tests" / name).is_file()]:
        raise pytest.UsageError(f"tests/conftest.py names files that are not there: {', '.join(missing)}")
    config.pluginmanager.register(Exactness(), "exactness")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {ROOT / "tests" / name: rank for rank, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture
def assert_exact(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return `Exactness.check` for this test, counted over the whole run."""
    exactness = request.config.pluginmanager.get_plugin("exactness")
    assert isinstance(exactness, Exactness)
    return partial(exactness.check, test=request.node.name)


@pytest.fixture(scope="session")
def model_dir() -> str:
    """Return the directory of the real small model that scripts/setup fetches."""
    return str(ROOT / ".models" / "SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, model_dir: str) -> Path:
    """Return the directory of a model that writes nonsense, quickly, with the real model's tokenizer."""
    directory = tmp_path_factory.mktemp("tiny-model")
    save_tiny_model(directory, Path(model_dir))
    return directory


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    """Start the server that all harmless tests share."""
    log = tmp_path_factory.mktemp("server") / "log"
    limits = {"LONGHAUL_MAX_JSON_BYTES": 100_000, "LONGHAUL_MAX_BODY_BYTES": 30_000_000}
    with Server(tiny_model_dir, log, LONGHAUL_SERVED_NAME="tiny", **limits) as server:
        yield server.wait_until_ready()


@pytest.fixture
def start(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts servers of the test's own, which end with it."""
    with ExitStack() as servers:

        def start(model_dir: str | Path = tiny_model_dir, **options: object) -> Server:
            log = tmp_path / f"log-{len(list(tmp_path.iterdir()))}"
            return servers.enter_context(Server(model_dir, log, **options))  # type: ignore[arg-type]

        yield start


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Return a function that makes a tiny model of any family, once for all tests that ask for the same."""
    made: dict[str, str] = {}

    def get(model_type: str = "llama", **changes: Any) -> str:
        key = f"{model_type} {changes}"
        if key not in made:
            made[key] = save_tiny_family(tmp_path_factory.mktemp(model_type), model_type, **changes)
        return made[key]

    return get
