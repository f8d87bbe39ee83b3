"""How much memory there is for the KV cache and how many tokens of it that makes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")
_CPU_CACHE_BYTES = 2 << 30
_CPU_CACHE_SHARE = 0.5
_GPU_SHARE = 0.92


def available_bytes(device: torch.device) -> int:
    """Return the bytes that can still be taken: a GPU's free memory, or what host and control group leave."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    host = int(psutil.virtual_memory().available)
    group = cgroup_available_bytes()
    return host if group is None else min(host, group)


def cgroup_available_bytes(root: Path = _CGROUP) -> int | None:
    """Return what the container's limit leaves, from cgroup v2 or v1; None where there is no limit."""
    v2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")
    for group, (limit, used, statistics, inactive) in ((root, v2), (root / "memory", v1)):
        try:
            left = int((group / limit).read_text()) - int((group / used).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        # Files read once, like the model's, stay in the group's memory until it is needed for something else:
        # `docker stats` and Kubernetes don't count them either.
        with contextlib.suppress(OSError):
            lines = map(str.split, (group / statistics).read_text().splitlines())
            left += next((int(value) for name, value in lines if name == inactive), 0)
        return max(0, left)
    return None


def cpu_count(root: Path = _CGROUP) -> int:
    """Return the cores this process may use: its affinity, cut to the control group's quota (`docker run --cpus`)."""
    cores = len(os.sched_getaffinity(0))
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((root / name).read_text() for name in files).split()
            if int(quota) > 0:  # v1 says -1 for no quota, v2 "max"
                return max(1, min(cores, int(quota) // int(period)))
        except (OSError, ValueError):
            continue
    return cores


def cache_tokens(
    device: torch.device, *, bytes_per_token: int, layers: float, copies: int, step_bytes: int, max_model_len: int
) -> int:
    """Return how many tokens the KV cache should hold if the settings don't say.

    `bytes_per_token` is for keys and values of all layers, of which there are `layers`, counted in such as the largest
    one; `step_bytes` is the most that one step's activations and
    scores need. Attention reads one layer's keys and values of the whole batch out of the cache, at most the whole
    cache's share of a layer, and holds `copies` of them at once, which come on top. A GPU gives all it has. A host's
    memory is shared with its other users, so there the cache has a modest size, or enough for four of the longest
    sequences, within half of what is available.
    """
    with_copies = 1 + copies / layers
    if device.type == "cuda":
        budget = available_bytes(device) * _GPU_SHARE - step_bytes
        return max(0, int(budget / (bytes_per_token * with_copies)))
    wanted = max(_CPU_CACHE_BYTES, 4 * max_model_len * bytes_per_token)
    limit = available_bytes(device) * _CPU_CACHE_SHARE - step_bytes
    return max(0, int(min(wanted, limit / with_copies) / bytes_per_token))
