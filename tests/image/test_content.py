"""The contents of the image, and its labels and settings."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest

import container as longhaul
from testing import ROOT
from testing.docker_container import PYTHON, docker


@pytest.fixture(scope="module")
def config(image: str) -> dict[str, Any]:
    (found,) = json.loads(docker("image", "inspect", image))
    return dict(found["Config"])


def inside(image: str, *command: str) -> str:
    return docker("run", "--rm", "--network=none", image, *command)


def test_serve_is_process_1_by_default(config: dict[str, Any]) -> None:
    assert not config["Entrypoint"]
    assert config["Cmd"] == ["serve"]
    assert config["User"] in ("", "0", "root")
    assert "8080/tcp" in config["ExposedPorts"]


def test_labels_name_version_and_revision(config: dict[str, Any]) -> None:
    labels = config["Labels"]
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert labels["org.opencontainers.image.version"] == longhaul.__version__
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", labels["org.opencontainers.image.revision"])
    assert not [name for name in labels if "cuda.verified_versions" in name]  # no GPU has verified any yet


def test_environment_is_independent_of_base(config: dict[str, Any]) -> None:
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    assert environment["LONGHAUL_HOST"] == "0.0.0.0"
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert environment["NVIDIA_DISABLE_REQUIRE"] == "true"
    assert not [name for name in environment if name.startswith("PIP_") and name != "PIP_CERT"]


def normalized(name: str) -> str:
    """A package's name as an index compares it (PyPA's "Names and normalization")."""
    return re.sub("[-_.]+", "-", name).lower()


def test_packages_are_those_pinned(image: str) -> None:
    pinned = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pins = {normalized(name): version for name, version in pinned}
    listed = inside(image, PYTHON, "-m", "pip", "list", "--format=json")
    packages = {normalized(package["name"]): package["version"] for package in json.loads(listed)}
    assert {"torch", "transformers", "fastapi", "uvicorn", "boto3"} <= set(packages)
    assert not {name for name in ("pytest", "mypy", "ruff", "openai", "ministack", "hypothesis") if name in packages}
    others = {name: version for name, version in packages.items() if version.partition("+")[0] != pins.get(name)}
    assert not others


def test_all_code_is_compiled_by_hash(image: str) -> None:
    """Code can't be compiled later, by a user who may not write or on a read-only root. By hash, as all times are
    equal."""
    wanting = inside(image, PYTHON, "-c", _WANTING, "/opt/longhaul/container", "/opt/longhaul/.venv/lib")
    assert wanting.split() == []


_WANTING = """
import importlib.util, pathlib, sys
UNCHECKED_HASH = b"\\1\\0\\0\\0"
for root in sys.argv[1:]:
    sources = list(pathlib.Path(root).rglob("*.py"))
    assert sources
    for path in sources:
        compiled = pathlib.Path(importlib.util.cache_from_source(str(path)))
        if not compiled.exists():
            try:
                compile(path.read_bytes(), str(path), "exec")
            except (SyntaxError, ValueError):
                continue  # for another version of Python, or a template
        if not compiled.exists() or compiled.read_bytes()[4:8] != UNCHECKED_HASH:
            print(path)
"""


def test_image_has_no_compiler_weights_or_leftovers(image: str) -> None:
    assert (
        inside(image, "sh", "-c", "for name in gcc cc make nvcc git; do command -v $name || true; done").split() == []
    )
    patterns = ("*.safetensors", "*.gguf", "*.whl", "pieces.pth", ".git", "pip.conf", "*.a")
    names = " -o ".join(f"-name '{pattern}'" for pattern in patterns)
    places = "/opt /root /home /tmp /var/cache /pins /pieces"
    assert inside(image, "sh", "-c", f"find {places} \\( {names} \\) 2>/dev/null || true").split() == []
    assert set(inside(image, "ls", "-A", "/opt/longhaul").split()) == {".venv", "container", "serve", "LICENSE"}


def test_image_has_exactly_the_packages_files(image: str) -> None:
    """The image has the package's files: .dockerignore selects them."""
    found = inside(image, "sh", "-c", "cd /opt/longhaul && find container -type f ! -name '*.pyc'").split()
    committed = subprocess.run(
        ["git", "ls-files", "container"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert set(found) == set(committed.split())


def test_torch_runs_without_removed_files(image: str) -> None:
    program = "import torch, transformers, accelerate, numpy, sympy; print(torch.ones(3).sum().item())"
    assert inside(image, PYTHON, "-W", "error::ImportWarning", "-c", program).split() == ["3.0"]
