from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from testing.docker_container import Container, as_sagemaker


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> str:
    name = request.config.getoption("--image")
    assert isinstance(name, str)
    return name


@pytest.fixture(scope="session")
def real_model(tmp_path_factory: pytest.TempPathFactory, model_dir: str) -> Path:
    return _readable(Path(model_dir), tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """Return the directory of a tiny model that every user may read, as SageMaker provides models."""
    return _readable(tiny_model_dir, tmp_path_factory.mktemp("tiny"))


def _readable(source: Path, parent: Path) -> Path:
    """Copy a model for every user to read: pytest's directories and transformers' weights are their maker's alone."""
    directory = parent / "model"
    shutil.copytree(source, directory)
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    directory.chmod(0o755)
    return directory


@pytest.fixture
def run(image: str) -> Iterator[Callable[..., Container]]:
    """Return a function that starts containers which end with the test: `run(model, *docker options)`."""
    with ExitStack() as containers:

        def run(model: Path, *options: str, command: tuple[str, ...] = ("serve",)) -> Container:
            container = Container(image, *as_sagemaker(model), *options, command=command)
            containers.callback(container.remove)
            return container

        yield run
