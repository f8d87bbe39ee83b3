from __future__ import annotations

import subprocess
import sys

from testing import ROOT

COMMAND = [sys.executable, str(ROOT / "scripts/survey_models.py")]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


def test_survey_gives_verdict_and_reason() -> None:
    types = ["--lean", "llama", "bloom"]
    done = subprocess.run([*COMMAND, *types], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    bloom, llama, total = done.stdout.splitlines()
    assert bloom.startswith("bloom: refused: the code of BloomForCausalLM fixes its attention function")
    assert llama.startswith("llama: equal") and total == "1 of 2 types are equal"


def test_sample_is_as_in_table() -> None:
    done = subprocess.run([*COMMAND, "--sample"], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith("18 of 20 types are equal\n")
