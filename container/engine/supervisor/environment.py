"""The environment variables of the engine process."""

from __future__ import annotations

import os
import platform

from container.engine.messages import EngineConfig


def engine_environment(config: EngineConfig, library_path: str | None) -> dict[str, str]:
    """Return the server's environment with what the engine's libraries should read, unless the user has set it."""
    # The model is a directory by now: no library in the engine has a reason to ask a hub. Never log prompts.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("HF_TOKEN", None)
    # Threads that spin at OpenMP's barriers take the core from the one they wait for as soon as anything else runs
    # (the server, to begin with): steps then take five to ten times as long. Sleeping costs nothing measurable.
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    if platform.machine() == "x86_64":
        # oneDNN keeps a kernel for each shape of layer and number of rows, a quarter of a MiB each and 1,024 of them,
        # and PyTorch its own list of as many, which keeps more alive and saves no time on this processor. An hour of
        # steps of all sizes fills both: 770 MiB in all, 210 with these.
        # https://oneapi-src.github.io/oneDNN/dev_guide_primitive_cache.html
        environment.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
        environment.setdefault("LRU_CACHE_CAPACITY", "1")
    if config.threads is not None:
        environment["OMP_NUM_THREADS"] = str(config.threads)
    if library_path is not None:
        environment["LD_LIBRARY_PATH"] = library_path
    return environment
