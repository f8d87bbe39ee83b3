from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from testing import ROOT


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return a function that imports a module of the checks by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return lambda name: importlib.import_module(f"gpu_checks.{name}")


def test_cpu_mode_checks_and_measures(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    names = ["out of memory", "make tiny", "tiny engine"]
    command = [sys.executable, str(ROOT / "scripts/check_gpu.py"), "--cpu", "--json", str(out), "--only", *names]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    environment["OMP_WAIT_POLICY"] = "passive"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    results = {result["name"]: result for result in json.loads(out.read_text())}
    assert (done.returncode, sorted(results)) == (0, sorted(names)), done.stderr
    statuses = {name: result["status"] for name, result in results.items()}
    assert (statuses["make tiny"], statuses["out of memory"]) == ("passed", "not run")
    assert statuses["tiny engine"] == "measured"
    assert "| the engine alone |" in done.stdout and "between two tokens" in done.stdout


def test_hanging_check_takes_no_others_time(part: Callable[[str], Any], tmp_path: Path) -> None:
    runner, settings = part("runner"), part("settings").for_cpu(str(tmp_path))
    driver, modes = part("driver"), part("modes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "run", lambda settings: signal.pause())
        patch.setattr(modes, "run", lambda settings: {"found": 1})
        checks = [runner.Check("hangs", "driver", 0.3), runner.Check("goes on", "modes", 30)]
        hung, went_on = runner.run_all(checks, settings, 60.0, lambda results: None)
    assert (hung.status, went_on.status, went_on.figures) == ("timed out", "passed", {"found": 1})


def test_spent_time_leaves_checks_out(part: Callable[[str], Any], tmp_path: Path) -> None:
    runner, settings = part("runner"), part("settings").for_cpu(str(tmp_path))
    (result,) = runner.run_all([runner.Check("late", "driver", 30)], settings, 0.0, lambda results: None)
    assert (result.status, result.reason) == ("not run", "no time was left")


def test_dead_check_fails_with_its_last_words(part: Callable[[str], Any], tmp_path: Path) -> None:
    runner, settings = part("runner"), part("settings").for_cpu(str(tmp_path))
    result = runner.run(runner.Check("dies", "random_model", 30, ("no such shape",)), settings, 30.0)
    assert result.status == "failed" and "KeyError: 'no such shape'" in result.reason


def test_gpus_checks_run_in_own_program(part: Callable[[str], Any], tmp_path: Path) -> None:
    runner, settings = part("runner"), part("settings")
    given = settings.for_gpu(str(tmp_path))
    result = runner.run(runner.Check("table", "settings", 60), given, 60.0)
    assert result.status == "failed" and "has no attribute 'run'" in result.reason
    assert part("child").read(json.dumps(asdict(given))) == given


def test_random_model_is_written_in_shards(
    part: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model = part("random_model")
    monkeypatch.setattr(random_model, "SHARD_BYTES", 100_000)
    size = random_model.make(tmp_path, "tiny", "bfloat16", "cpu")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2 and index["metadata"]["total_size"] == size
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / shard, "pt") as weights:
            tensor = weights.get_tensor(name)
        assert tensor.dtype == torch.bfloat16 and (tensor.dim() == 1 or 0.01 < tensor.float().std() < 0.03)
