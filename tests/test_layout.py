from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from testing import ROOT


def modules_after(statement: str) -> set[str]:
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, text=True)
    return set(json.loads(answer.stdout))


@pytest.mark.parametrize("name", ["", ".sequence", ".messages", ".supervisor.engine_client"])
def test_the_edges_side_of_the_engine_pulls_in_nothing_else_of_the_container_and_no_torch(name: str) -> None:
    loaded = modules_after(f"import container.engine{name}")
    assert "torch" not in loaded and "transformers" not in loaded
    assert {m for m in loaded if m.startswith("container.")} == {
        m for m in loaded if m.startswith(("container.engine", "container.processes"))
    }


def test_the_edge_imports_no_torch() -> None:
    loaded = modules_after("import container.server.serve")
    assert "torch" not in loaded and "transformers" not in loaded


@pytest.mark.parametrize("path", sorted((ROOT / "container/engine").rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_of_the_engine_imports_from_outside_it(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("container"):
            assert (node.module or "").startswith(("container.engine", "container.processes"))
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & {"container", "endpoint"}


@pytest.mark.parametrize(("package", "other"), [("endpoint", "container"), ("container", "endpoint")])
def test_container_and_endpoint_import_nothing_from_each_other(package: str, other: str) -> None:
    paths = list((ROOT / package).rglob("*.py"))
    assert len(paths) > 20
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] != other, path
            if isinstance(node, ast.Import):
                assert other not in {alias.name.split(".")[0] for alias in node.names}, path
