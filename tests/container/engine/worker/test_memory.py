from __future__ import annotations

from pathlib import Path

import pytest
import torch

from container.engine.worker import memory

CPU = torch.device("cpu")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = {"memory.max": "1000\n", "memory.current": "600\n", "memory.stat": "anon 500\ninactive_file 100\n"}
V1 = {
    "memory/memory.limit_in_bytes": "1000\n",
    "memory/memory.usage_in_bytes": "600\n",
    "memory/memory.stat": "cache 100\ntotal_inactive_file 100\n",
}


@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1"])
def test_inactive_files_count_as_free_memory(tmp_path: Path, files: dict[str, str]) -> None:
    assert memory.cgroup_available_bytes(write(tmp_path, files)) == 500


@pytest.mark.parametrize("files", [{}, V2 | {"memory.max": "max\n"}], ids=["no group", "no limit"])
def test_group_without_limit_leaves_everything(tmp_path: Path, files: dict[str, str]) -> None:
    assert memory.cgroup_available_bytes(write(tmp_path, files)) is None


def test_limit_counts_without_statistics(tmp_path: Path) -> None:
    group = {name: text for name, text in V2.items() if name != "memory.stat"}
    assert memory.cgroup_available_bytes(write(tmp_path, group)) == 400


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    assert memory.cgroup_available_bytes(write(tmp_path, V2 | {"memory.current": "5000\n"})) == 0


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_a_quota_cuts_the_cores(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert memory.cpu_count(write(tmp_path, files)) == cores


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    unlimited = memory.cpu_count(tmp_path)
    assert unlimited >= 1
    assert memory.cpu_count(write(tmp_path, {"cpu.max": "max 100000\n"})) == unlimited
    v1 = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert memory.cpu_count(write(tmp_path / "v1", v1)) == unlimited


def test_host_cache_holds_four_longest_sequences() -> None:
    tokens = memory.cache_tokens(CPU, bytes_per_token=1 << 10, layers=8, copies=2, step_bytes=0, max_model_len=100)
    assert 400 <= tokens <= memory.available_bytes(CPU) * 0.5 / (1 << 10)


def test_huge_step_leaves_no_cache() -> None:
    huge = memory.available_bytes(CPU) * 2
    assert memory.cache_tokens(CPU, bytes_per_token=1, layers=1, copies=2, step_bytes=huge, max_model_len=10) == 0
