"""The table of scripts/test-clients, without its clients: CI runs some of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from testing import ROOT

PROGRAMS = ROOT / "scripts" / "clients"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "test_clients.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_listed_clients_have_programs_and_versions() -> None:
    listed = [line.split() for line in run("--list").stdout.splitlines()]
    assert sorted(program for _, program, *_ in listed) == sorted(path.name for path in PROGRAMS.glob("with_*"))
    versions = [version for _, _, *packages in listed for version in packages]
    assert len(versions) > 8 and all(re.fullmatch(r"[\w-]+(==|@)[\d.]+", version) for version in versions)


def test_clients_that_ci_runs_are_listed() -> None:
    listed = {line.split()[0] for line in run("--list").stdout.splitlines()}
    called = re.search(r"scripts/test-clients ([\w -]+)", (ROOT / ".ci" / "run").read_text())
    assert called is not None and set(called[1].split()) <= listed


def test_unknown_client_is_refused_before_set_up() -> None:
    refused = run("openai", "none-such")
    assert (refused.returncode, "no such client: none-such" in refused.stderr) == (2, True)
