"""scripts/findings on a folder of findings that hold, changed, hang or can't run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from testing import ROOT

HANGS = """
folder=$(mktemp -d)
echo "$folder" >"$(dirname "$0")/folder"
trap 'rm -rf "$folder"' EXIT
trap 'exit 2' TERM
echo waiting
sleep 600 & wait
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "holds.sh").write_text("echo as ever\n")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts/findings"), "--folder", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_finding_that_holds_is_same(folder: Path) -> None:
    done = run(folder)
    assert (done.returncode, done.stdout) == (0, "same           holds\n")


def test_changed_finding_fails_with_its_output(folder: Path) -> None:
    (folder / "changes.sh").write_text("echo 3 instead of 2; exit 1\n")
    done = run(folder)
    assert done.returncode == 1
    assert done.stdout == "changed        changes\n    3 instead of 2\nsame           holds\n"


def test_finding_without_its_package_failed_to_run(folder: Path) -> None:
    (folder / "lacks.sh").write_text("echo no such package >&2; exit 2\n")
    done = run(folder)
    assert done.returncode == 2
    assert "failed to run  lacks\n    no such package\n" in done.stdout


def test_hanging_finding_ends_and_cleans_up(folder: Path) -> None:
    (folder / "hangs.sh").write_text(HANGS)
    done = run(folder, "--timeout", "3", "hangs")
    assert done.returncode == 2
    assert done.stdout == "failed to run  hangs\n    waiting\n    no end within 3 s\n"
    assert not Path((folder / "folder").read_text().strip()).exists()


def test_named_findings_run_alone(folder: Path) -> None:
    (folder / "changes.sh").write_text("exit 1\n")
    assert run(folder, "holds").stdout == "same           holds\n"


def test_unknown_name_failed_to_run(folder: Path) -> None:
    done = run(folder, "unknown")
    assert done.returncode == 2 and "there is no" in done.stdout


def test_empty_folder_says_so(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (0, f"there are no findings in {tmp_path}\n")


def test_every_finding_states_what_was_seen() -> None:
    for script in (ROOT / "findings").glob("*.sh"):
        head = script.read_text()
        assert "Output seen:" in head and "mktemp -d" in head, script.name
