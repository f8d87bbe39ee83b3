"""The check that the host's NVIDIA driver can run the installed torch, before the engine starts.

Owns NVIDIA's rules of compatibility as tables. Unknown drivers and GPUs are let through with a warning. Sources:

- Minor version compatibility, https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
- Forward compatibility, https://docs.nvidia.com/deploy/cuda-compatibility/forward-compatibility.html
- SageMaker's images of the host, https://docs.aws.amazon.com/sagemaker/latest/dg/inference-gpu-drivers.html
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from container.startup.gpu_facts import GPU, Facts, Release, Torch, find_torch, read_facts

logger = logging.getLogger(__name__)

MIN_DRIVER = {12: 525, 13: 580}
"""First driver branch that runs every minor release of a major release of CUDA (minor version compatibility, table 1).
Newer drivers run older releases."""

FORWARD_BASES = {
    560: (470, 535, 550),
    575: (535, 550, 560, 565, 570),
    580: (535, 550, 565, 570, 575),
    590: (535, 550, 570, 575, 580),
    595: (535, 570, 580, 590),
}
"""Driver branches of hosts on which the compat libraries of a branch work (CUDA 12.6, 12.9, 13.0, 13.1, 13.2).
NVIDIA's own images nvidia/cuda list them in NVIDIA_REQUIRE_CUDA, which the container toolkit enforces."""

CAPABILITIES: dict[Release, tuple[Release, Release]] = {
    (12, 6): ((5, 0), (9, 0)),
    (12, 9): ((7, 5), (12, 0)),
    (13, 0): ((7, 5), (12, 0)),
    (13, 2): ((7, 5), (12, 0)),
}
"""First and last compute capability in the x86-64 wheels of torch 2.13 for a CUDA release
(`torch.cuda.PYTORCH_RELEASES_CODE_CC`, to which a test holds this).

torch itself calls an older GPU available. Only its first kernel fails, as it would by an error that may pass, so that
the engine would be started again and again: that is why the generations are checked here."""

GENERATIONS: tuple[tuple[str, Release], ...] = (
    ("Kepler (3.x)", (3, 0)),
    ("Maxwell (5.x)", (5, 0)),
    ("Pascal (6.x)", (6, 0)),
    ("Volta (7.0)", (7, 0)),
    ("Turing (7.5)", (7, 5)),
    ("Ampere (8.x)", (8, 0)),
    ("Ada (8.9)", (8, 9)),
    ("Hopper (9.0)", (9, 0)),
    ("Blackwell (10.x, 12.x)", (10, 0)),
)

OLD_MODELS: tuple[tuple[str, Release], ...] = (
    (r"Tesla K\d+|GRID K\d+", (3, 0)),
    (r"(Tesla|GRID) M\d+|Quadro M\d+|GTX 9[5-8]0|GTX TITAN X", (5, 2)),
    (r"(Tesla|GRID) P\d+|Quadro G?P\d+|GTX 10[5-8]0|TITAN Xp?\b", (6, 0)),
    (r"\bV100|Quadro GV100|TITAN V\b", (7, 0)),
)
"""Compute capability of GPUs from before Turing by their names (https://developer.nvidia.com/cuda-legacy-gpus): the
kernel module does not tell it."""

CONSUMER, WORKSTATION = r"GeForce|TITAN", r"Quadro|RTX"
"""Names of GPUs that are not for data centres. Forward compatibility is for those that are and for selected RTX cards
(see the page); elsewhere CUDA fails with error 804. The RTX cards are not listed, so all may try, as in NVIDIA's
images."""

AMI = {
    12: "al2-ami-sagemaker-inference-gpu-3-1 (driver 550, CUDA 12.4)",
    13: "al2023-ami-sagemaker-inference-gpu-4-1 (driver 580, CUDA 13.0)",
}
"""InferenceAmiVersion whose driver needs no compat libraries for a major release of CUDA."""

INSTANCES = "ml.g4dn, ml.g5, ml.g6, ml.g6e, ml.p4d or ml.p5"

Action = Literal["use_host", "use_compat", "refuse", "no_gpu"]


class UnfitDriver(Exception):
    """The GPU, its driver and torch don't fit together, and a restart would not help. The message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    action: Action
    sentence: str = ""
    is_warning: bool = False
    """True if the engine may still fail to use the GPU."""
    library_path: str | None = None
    """LD_LIBRARY_PATH of the engine; none to leave it as it is."""

    @property
    def needs_gpu(self) -> bool:
        """True if the engine must not fall back to the slow CPU when torch finds the GPU unusable."""
        return self.action in ("use_host", "use_compat")


NO_GPU = Decision(action="no_gpu")


def check(
    device: str | None,
    *,
    root: str | Path = "/",
    environ: Mapping[str, str] = os.environ,
    torch_dir: Path | None = None,
) -> Decision:
    """Look at the machine and decide. Logs what it found, if there is a GPU. Raises UnfitDriver.

    `device` is LONGHAUL_DEVICE; for the CPU nothing is looked at. Takes a quarter of a minute if nvidia-smi hangs.
    """
    if device == "cpu":
        return NO_GPU
    facts = read_facts(Path(root), environ, torch_dir or find_torch())
    decision = decide(facts, device)
    if decision.action == "refuse":
        raise UnfitDriver(decision.sentence)
    if decision.sentence:
        extra = {
            "action": "driver_checked",
            "decision": decision.action,
            "driver": facts.driver,
            "cuda": _dotted(facts.torch.cuda) if facts.torch is not None and facts.torch.cuda is not None else None,
            "compat": facts.compat,
            "gpus": [gpu.name for gpu in facts.gpus],
        }
        logger.log(logging.WARNING if decision.is_warning else logging.INFO, decision.sentence, extra=extra)
    return decision


def decide(facts: Facts, device: str | None = None) -> Decision:
    """Decide by the first thing that settles it: no GPU, torch's build, the GPU's generation, the driver.

    The compat libraries are on the engine's path if and only if they are needed: on a newer driver CUDA fails with
    error 803, as they are not backward compatible.
    """
    if not facts.has_gpu:
        return NO_GPU
    named = " and ".join(sorted({gpu.name for gpu in facts.gpus})) or "an NVIDIA GPU"
    torch = facts.torch
    if torch is None:
        return Decision(
            action="use_host", is_warning=True, sentence="torch's CUDA release can't be read; driver not checked"
        )
    if torch.cuda is None:
        sentence = f"this machine has {named}, but the installed torch {torch.version} is built without CUDA"
        if device is None:
            return Decision(action="no_gpu", is_warning=True, sentence=f"{sentence}: the engine runs on the CPU")
        return Decision(action="refuse", sentence=f"LONGHAUL_DEVICE is {device} and {sentence}: install a CUDA build")
    if torch.cuda[0] not in MIN_DRIVER:
        sentence = f"no driver is known for CUDA {_dotted(torch.cuda)}; driver not checked"
        return Decision(action="use_host", is_warning=True, sentence=sentence)
    first, _ = _capabilities(torch.cuda) or ((0, 0), None)
    too_old = [gpu for gpu in facts.gpus if (_capability(gpu) or first) < first]
    if too_old and len(too_old) == len(facts.gpus):
        gpu, release = too_old[0], _dotted(torch.cuda)
        generation = [name for name, first in GENERATIONS if first <= (_capability(gpu) or (3, 0))][-1]
        sentence = f"{gpu.name} is too old a GPU for CUDA {release}: its generation is {generation}."
        advice = f"choose an instance of {INSTANCES}, with InferenceAmiVersion {AMI[torch.cuda[0]]}."
        sentence = f"{sentence}{_supported(torch, torch.cuda)} On SageMaker {advice}"
        decision = Decision(action="refuse", sentence=sentence)
    else:
        decision = _decide_on_driver(facts, torch, torch.cuda)
    if decision.action == "refuse":
        way_out = " Or set LONGHAUL_DEVICE=cpu, to do without the GPU." if device is None else ""
        return replace(decision, sentence=decision.sentence + way_out)
    if too_old:
        warning = f"{decision.sentence}; {too_old[0].name} is too old a GPU for it: keep the engine off it"
        return replace(decision, sentence=warning, is_warning=True)
    return decision


def _decide_on_driver(facts: Facts, torch: Torch, cuda: Release) -> Decision:
    needs = f"CUDA {_dotted(cuda)} (torch {torch.version}) needs driver {MIN_DRIVER[cuda[0]]} or newer"
    if facts.driver is None:
        return Decision(
            action="use_host",
            is_warning=True,
            sentence=f"the NVIDIA driver's version can't be read, not checked: {needs}",
        )
    if _branch(facts.driver) >= MIN_DRIVER[cuda[0]]:
        return Decision(
            action="use_host",
            sentence=f"NVIDIA driver {facts.driver} is new enough: {needs}",
            library_path=":".join(facts.library_path),
        )
    reason = _compat_rejection(facts, MIN_DRIVER[cuda[0]])
    if reason is not None:
        return Decision(
            action="refuse",
            sentence=f"the host's NVIDIA driver {facts.driver} is too old: {needs}, and {reason}. "
            f"Update the driver; on SageMaker choose InferenceAmiVersion {AMI[cuda[0]]}.{_supported(torch, cuda)}",
        )
    unsure = _compat_doubt(facts)
    return Decision(
        action="use_compat",
        is_warning=unsure is not None,
        sentence=f"NVIDIA driver {facts.driver} alone is too old: {needs}. The image's compat libraries of driver "
        f"{facts.compat} are used{f', though {unsure}' if unsure else ''}",
        library_path=":".join((facts.compat_dir, *facts.library_path)),
    )


def _compat_rejection(facts: Facts, least: int) -> str | None:
    consumer = [gpu.name for gpu in facts.gpus if re.search(CONSUMER, gpu.name)]
    if consumer and len(consumer) == len(facts.gpus):
        return f"CUDA's compat libraries work on data-centre GPUs only, not on {consumer[0]}"
    if facts.compat is None:
        return f"there are no compat libraries in {facts.compat_dir}"
    if _branch(facts.compat) < least:
        return f"the compat libraries in {facts.compat_dir} are of driver {facts.compat}, too old themselves"
    bases = FORWARD_BASES.get(_branch(facts.compat))
    if bases is not None and _branch(facts.driver or "0") not in bases:
        return f"the compat libraries of driver {facts.compat} work on drivers {', '.join(map(str, bases))} only"
    return None


def _compat_doubt(facts: Facts) -> str | None:
    consumer = [gpu.name for gpu in facts.gpus if re.search(CONSUMER, gpu.name)]
    if consumer:
        return f"they don't work on {consumer[0]}: hide it with CUDA_VISIBLE_DEVICES"
    if not facts.gpus:
        return "the GPU's model can't be read and they work on data-centre GPUs only"
    if workstation := [gpu.name for gpu in facts.gpus if re.search(WORKSTATION, gpu.name)]:
        return f"they work on some RTX cards only, and maybe not on {workstation[0]}"
    if _branch(facts.compat or "0") not in FORWARD_BASES:
        return "it is not known which drivers they work on"
    return None


def _supported(torch: Torch, cuda: Release) -> str:
    """Return a sentence on the GPUs that torch runs on; empty if that is unknown."""
    if (range_ := _capabilities(cuda)) is None:
        return ""
    first, last = range_
    names = [
        name
        for (name, begin), (_, end) in zip(GENERATIONS, (*GENERATIONS[1:], ("", (99, 0))), strict=True)
        if begin <= last and end > first
    ]
    return f" torch {torch.version} runs on {', '.join(names[:-1])} and {names[-1]}."


def _capabilities(cuda: Release) -> tuple[Release, Release] | None:
    """Return the bounds of a CUDA release. Where torch 2.13 has no wheel for it, only CUDA 13's own are known."""
    return CAPABILITIES.get(cuda, CAPABILITIES[13, 0] if cuda[0] == 13 else None)


def _capability(gpu: GPU) -> Release | None:
    """Return what nvidia-smi said, else an old model's. None for other names."""
    of_name = (capability for pattern, capability in OLD_MODELS if re.search(pattern, gpu.name))
    return gpu.capability or next(of_name, None)


def _branch(driver: str) -> int:
    return int(driver.split(".")[0])


def _dotted(release: Release) -> str:
    return f"{release[0]}.{release[1]}"
