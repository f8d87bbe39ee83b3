"""Things that the checks need and that this machine lacks."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import psutil

NEEDED = ("torch", "transformers", "safetensors", "tokenizers", "msgspec", "aiohttp", "httpx", "pytest", "setproctitle")
"""Modules without which nothing runs."""
WANTED = {"fastapi": "transformers serve", "uvicorn": "transformers serve", "openai": "transformers serve"}
"""Modules without which a part does not run."""
_DISK_GIB, _MEMORY_GIB = 24, 40


def missing(folder: str, *, needs_gpu: bool) -> tuple[list[str], list[str]]:
    """Return what ends the run, and what only leaves out some of it."""
    needed = [f"the Python module {name}" for name in NEEDED if importlib.util.find_spec(name) is None]
    wanted = [
        f"the Python module {name}: {part} is left out"
        for name, part in WANTED.items()
        if importlib.util.find_spec(name) is None
    ]
    if needs_gpu and not needed:
        needed += _missing_gpu()
        free, memory = shutil.disk_usage(folder).free / 2**30, psutil.virtual_memory().available / 2**30
        if free < _DISK_GIB:
            wanted.append(f"{_DISK_GIB} GiB of free disk in {folder} for the models ({free:.0f} there): set TMPDIR")
        if memory < _MEMORY_GIB:
            wanted.append(f"{_MEMORY_GIB} GiB of memory for the larger model ({memory:.0f} there)")
    return needed, wanted


def _missing_gpu() -> list[str]:
    import torch

    from container.startup.gpu_facts import read_facts

    if torch.version.cuda is None:
        return [f"a CUDA build of torch ({torch.__version__} is none)"]
    # torch isn't asked for the GPU: that would set up CUDA in this process. The driver's check does it.
    return [] if read_facts(Path("/"), os.environ, None).has_gpu else ["a GPU: there is no device /dev/nvidia0"]
