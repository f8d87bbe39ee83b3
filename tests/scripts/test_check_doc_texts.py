"""The check of doc texts: which first words it refuses, and where it finds them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from testing import ROOT

FRAGMENTS = '''"""Of the module."""

LIMIT = 3
"""So that it ends."""


class Thing:
    """That there is."""

    size: int = 0
    """Bytes of the thing."""

    def grow(self) -> None:
        """And more of it."""
'''
COMPLETE = '''"""Things and their sizes."""


def measure() -> str:
    """Return the size."""
    return "of a string that is not a doc text"
'''


def check(root: Path, *folders: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/check_doc_texts.py"), "--root", str(root), *folders]
    return subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def folder(root: Path, name: str, text: str) -> None:
    (root / name).mkdir()
    (root / name / "module.py").write_text(text)


def test_fragments_fail_with_file_and_line(tmp_path: Path) -> None:
    folder(tmp_path, "package", FRAGMENTS)
    checked = check(tmp_path, "package")
    assert checked.returncode == 1
    assert checked.stdout.splitlines() == [
        "package/module.py:1: Of the module.",
        "package/module.py:4: So that it ends.",
        "package/module.py:8: That there is.",
        "package/module.py:14: And more of it.",
    ]


def test_complete_texts_pass(tmp_path: Path) -> None:
    folder(tmp_path, "package", COMPLETE)
    checked = check(tmp_path, "package")
    assert (checked.returncode, checked.stdout) == (0, "")


def test_only_named_folders_are_checked(tmp_path: Path) -> None:
    folder(tmp_path, "package", COMPLETE)
    folder(tmp_path, "other", FRAGMENTS)
    assert check(tmp_path, "package").returncode == 0
    assert check(tmp_path, "package", "other").returncode == 1
