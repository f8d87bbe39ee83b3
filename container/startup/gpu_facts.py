"""Facts about this machine's NVIDIA GPUs, their driver, the image's compat libraries and the torch wheel.

They are read from files, and asked of nvidia-smi if those don't say enough. Nothing here decides, or imports torch.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Release = tuple[int, int]

COMPAT = "usr/local/cuda/compat"
"""Directory in which NVIDIA's package cuda-compat puts its libraries, in the nvidia/cuda images, too
(https://docs.nvidia.com/deploy/cuda-compatibility/forward-compatibility.html)."""
NVIDIA_SMI_TIMEOUT_S = 15.0
"""Seconds for an answer: without a persistence daemon it sets up every GPU first, seconds each; with a broken driver it
may never answer."""
_TOOLS = ("usr/bin", "usr/local/bin", "usr/local/nvidia/bin")  # the last is where Kubernetes clouds mount it
_FIELDS = ("name,driver_version,compute_cap", "name,driver_version")  # nvidia-smi of 470 knows no compute_cap


@dataclass(frozen=True, slots=True, kw_only=True)
class GPU:
    name: str
    capability: Release | None = None
    """Compute capability, if nvidia-smi was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    version: str
    cuda: Release | None
    """CUDA release that it is built for; none for a CPU (or another vendor's) build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the check knows. What can't be read is None or empty. Drivers are versions: 580.65.06."""

    has_gpu: bool
    driver: str | None = None
    gpus: tuple[GPU, ...] = ()
    compat_dir: str = f"/{COMPAT}"
    compat: str | None = None
    """Driver from which the image's compat libraries are taken; none without such libraries."""
    torch: Torch | None = None
    library_path: tuple[str, ...] = ()
    """Entries of LD_LIBRARY_PATH, without the compat directory."""


def read_facts(
    root: Path, environ: Mapping[str, str], torch_dir: Path | None, timeout_s: float = NVIDIA_SMI_TIMEOUT_S
) -> Facts:
    """Read the facts of the machine whose file system is at `root`. Runs a program only if there is a GPU."""
    # Device nodes tell whether there is a GPU. NVIDIA_VISIBLE_DEVICES does not: it is `void` in containers that got
    # their GPUs by CDI (https://github.com/NVIDIA/nvidia-container-toolkit/pull/395), and all files of a driver may be
    # there without a GPU. CUDA sees none where CUDA_VISIBLE_DEVICES is empty or begins with an index that does not
    # exist (CUDA programming guide, "CUDA Environment Variables").
    visible = environ.get("CUDA_VISIBLE_DEVICES", "all").split(",")[0].strip()
    nodes = (re.fullmatch(r"nvidia\d+", node.name) for node in root.glob("dev/nvidia*"))
    if visible in ("", "-1") or not any(nodes):
        return Facts(has_gpu=False)
    module = root / "proc/driver/nvidia"
    # The closed module says `NVIDIA UNIX x86_64 Kernel Module  535.161.08  …`, the open one `NVIDIA UNIX Open Kernel
    # Module for x86_64  580.95.05  Release Build …`.
    found = re.search(r"^NVRM version:.*Kernel Module(?: for \S+)?\s+(\d+\.\d[\d.]*)", _text(module / "version"), re.M)
    driver = found[1] if found else None
    models = [
        re.search(r"^Model:[ \t]*(\S.*)$", _text(file), re.M) for file in sorted(module.glob("gpus/*/information"))
    ]
    gpus = tuple(GPU(name=model[1].strip()) for model in models if model and model[1].strip() != "Unknown")
    if driver is None or not gpus:
        smi_driver, smi_gpus = _ask_nvidia_smi(root, timeout_s)
        driver, gpus = driver or smi_driver, smi_gpus or gpus
    compat_dir = root / COMPAT
    entries = filter(None, environ.get("LD_LIBRARY_PATH", "").split(":"))
    real = os.path.realpath(compat_dir)  # the directory in any spelling: /usr/local/cuda is a link
    return Facts(
        has_gpu=True,
        driver=driver,
        gpus=gpus,
        compat_dir=str(compat_dir),
        compat=_driver_of_compat(compat_dir),
        torch=read_torch(torch_dir) if torch_dir is not None else None,
        library_path=tuple(entry for entry in entries if os.path.realpath(entry) != real),
    )


def _ask_nvidia_smi(root: Path, timeout_s: float) -> tuple[str | None, tuple[GPU, ...]]:
    tool = shutil.which("nvidia-smi", path=os.pathsep.join(str(root / folder) for folder in _TOOLS))
    for fields in _FIELDS if tool is not None else ():
        answer = _run([str(tool), f"--query-gpu={fields}", "--format=csv,noheader"], timeout_s)
        if answer is None:
            break
        rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines()]
        rows = [row for row in rows if len(row) == fields.count(",") + 1 and re.fullmatch(r"\d+\.\d[\d.]*", row[1])]
        if rows:
            return rows[0][1], tuple(GPU(name=row[0], capability=_release("".join(row[2:]))) for row in rows)
    return None, ()


def _run(command: list[str], timeout_s: float) -> str | None:
    """Return its output, whatever its exit status; None if it can't be run or does not end in time."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
    except OSError:
        return None
    try:
        return process.communicate(timeout=timeout_s)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        try:
            # In a driver's call that never returns, not even SIGKILL ends it: it is left behind.
            process.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            process.returncode = -signal.SIGKILL
        return None


def _driver_of_compat(directory: Path) -> str | None:
    """Return the version in the name of the file that libcuda.so.1 links to, libcuda.so.VERSION."""
    link = directory / "libcuda.so.1"
    try:
        target = os.readlink(link) if link.exists() else ""
    except OSError:  # a plain file: its version can't be told
        return None
    found = re.fullmatch(r"libcuda\.so\.(\d+\.\d[\d.]*)", os.path.basename(target))
    return found[1] if found else None


def find_torch() -> Path | None:
    """Return the installed package's directory, without importing it."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def read_torch(directory: Path) -> Torch | None:
    """Read `version.py`, which a wheel's build writes: `cuda: Optional[str] = '13.0'`."""
    try:
        statements = ast.parse(_text(directory / "version.py")).body
    except (SyntaxError, ValueError):
        return None
    values: dict[str, object] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Constant):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            values |= {target.id: statement.value.value for target in targets if isinstance(target, ast.Name)}
    version, cuda = values.get("__version__"), values.get("cuda", "unknown")
    release = _release(str(cuda))
    if not isinstance(version, str) or (cuda is not None and release is None):
        return None
    return Torch(version=version, cuda=release)


def _release(text: str) -> Release | None:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
