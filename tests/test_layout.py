"""The house's rules: packages import downwards only, in the order that docs/architecture.md states."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from testing import ROOT
from testing.imports import find_circles, import_graph
from testing.sources import Source, read_sources

PACKAGES = {name: read_sources(ROOT, name) for name in ("container", "endpoint")}
ORDER = re.findall(
    r"^\| `((?:container|endpoint)[\w./]*)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE
)
"""Packages and root modules as the tables of docs/architecture.md list them: from the bottom up."""
WITHOUT_TORCH = ("dialects", "engine.supervisor", "invocations", "jobs", "journal", "server")


def place(module: str) -> str:
    """The longest entry of `ORDER` that the module is, or lies in."""
    name = module
    while name not in ORDER:
        name, _, _ = name.rpartition(".")
        assert name, f"docs/architecture.md lists no package for {module}"
    return name


def imported_from(source: Source) -> set[str]:
    """Names of the top-level packages that a file imports."""
    names = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_import_in_no_circle(package: str) -> None:
    assert find_circles(PACKAGES[package]) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_downwards_only(package: str) -> None:
    graph = import_graph(PACKAGES[package], for_types=True)
    assert sum(map(len, graph.values())) > 100
    upwards = [
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in targets
        if "." in module and "." in target and ORDER.index(place(target)) > ORDER.index(place(module))
    ]
    assert upwards == []


@pytest.mark.parametrize("package", PACKAGES)
def test_architecture_lists_every_package(package: str) -> None:
    modules = {source.module for source in PACKAGES[package] if source.path.parent != Path(package)}
    used = {place(module) for module in modules}
    listed = {entry for entry in ORDER if entry.startswith(f"{package}.") and (ROOT / entry.replace(".", "/")).is_dir()}
    assert used == listed


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_package_imports_no_torch(package: str) -> None:
    modules = [s.module for s in PACKAGES["container"] if s.module.startswith(f"container.{package}")]
    program = f"import json, sys\nimport {', '.join(modules)}\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, text=True)
    assert len(modules) > 3 and not {"torch", "transformers"} & set(json.loads(answer.stdout))


def test_engine_imports_only_processes() -> None:
    graph = import_graph(PACKAGES["container"], for_types=True)
    inner = ("container.engine", "container.processes")
    assert [
        t for module in graph if module.startswith(inner[0]) for t in graph[module] if not t.startswith(inner)
    ] == []


@pytest.mark.parametrize(
    ("folder", "other"),
    [("container", "endpoint"), ("endpoint", "container"), ("tests", "scripts"), ("scripts", "tests")],
)
def test_halves_know_nothing_of_each_other(folder: str, other: str) -> None:
    modules = {path.stem for path in (ROOT / other).iterdir() if path.is_dir() or path.suffix == ".py"}
    forbidden = {other} | (modules - {"container", "endpoint", "image"} if other == "scripts" else set())
    sources = read_sources(ROOT, folder)
    assert len(sources) > 20
    assert [str(source.path) for source in sources if imported_from(source) & forbidden] == []


@pytest.mark.parametrize(("package", "limit"), [("container", 6), ("endpoint", 10)])
def test_root_of_package_stays_small(package: str, limit: int) -> None:
    assert len(list((ROOT / package).glob("*.py"))) <= limit
