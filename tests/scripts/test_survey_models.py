from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from testing import ROOT

COMMAND = [sys.executable, str(ROOT / "scripts/survey_models.py")]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def survey(*arguments: str | Path) -> tuple[int, str]:
    """Run `scripts/survey-models` with the tests' Python; return its status and output."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT)
    return done.returncode, done.stdout + done.stderr


def test_sample_is_as_in_table(tmp_path: Path) -> None:
    status, output = survey("--sample", "--json", tmp_path / "results")
    assert status == 0, output
    results = json.loads((tmp_path / "results").read_text())
    equal = [result for result in results.values() if result.get("differing")]
    assert len(results) == 20 and len(equal) >= 12
    for result in equal:
        assert set(result["differing"]) == {"pieces", "prefixes", "tight", "resumed", "killed"}
    assert sum(result.get("preemptions", 0) > 0 for result in equal) >= 12


def test_type_beyond_limit_is_no_hang(tmp_path: Path) -> None:
    status, output = survey("llama", "--limit", "0.01", "--json", tmp_path / "results")
    assert status == 0
    assert "took more than 0 seconds" in output and "1 types, 0 equal" in output


def test_unknown_type_is_told() -> None:
    status, output = survey("llama9")
    assert status == 1 and "not surveyed: llama9" in output
