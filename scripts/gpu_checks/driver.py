"""The driver's check as the server does it at its start, beside what torch itself finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from container.startup.gpu_driver import decide
from container.startup.gpu_facts import find_torch, read_facts

from .settings import Settings


def run(settings: Settings) -> dict[str, Any]:
    facts = read_facts(Path("/"), {}, find_torch())
    decision = decide(facts, None if settings.is_cuda else "cpu")
    figures: dict[str, Any] = {
        "driver": facts.driver,
        "gpus": [gpu.name for gpu in facts.gpus],
        "torch": torch.__version__,
        "decision": decision.action,
        "sentence": decision.sentence,
    }
    if settings.is_cuda:
        assert decision.action in ("use_host", "use_compat"), f"torch uses the GPU, but: {decision.sentence}"
        name = torch.cuda.get_device_name(0)
        figures |= {"name": name, "capability": list(torch.cuda.get_device_capability(0))}
        assert any(gpu.name in name or name in gpu.name for gpu in facts.gpus), f"torch finds {name}, not {facts.gpus}"
        assert torch.ones(2, device="cuda").sum().item() == 2.0, "the first kernel gave a wrong sum"
    return figures
