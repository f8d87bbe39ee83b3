"""The check of NVIDIA's driver, on machines that are folders."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch

from container.startup.gpu_driver import (
    CAPABILITIES,
    GENERATIONS,
    MIN_DRIVER,
    NO_GPU,
    Action,
    Decision,
    UnfitDriver,
    check,
    decide,
)
from container.startup.gpu_facts import GPU, Torch, find_torch, read_facts, read_torch
from testing import ROOT
from testing.server import Server, eventually

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sat Feb 17 22:55:48 UTC 2024\nGCC version:  gcc 12.3.0\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs@U22)  Wed Jul 30 2025\n"
GPU_FILE = "Model: \t\t {}\nIRQ:   \t\t 10\nGPU UUID: \t GPU-9221d5d1\nGPU Firmware: \t 535.129.03\n"
VERSION_PY = "from typing import Optional\n__version__ = {!r}\ncuda: Optional[str] = {!r}\nhip: Optional[str] = None\n"
CU130, CU126, CPU_BUILD = ("2.13.0+cu130", "13.0"), ("2.13.0+cu126", "12.6"), ("2.13.0+cpu", None)
COMPAT_130 = "580.95.05"
AMI_13, AMI_12 = "al2023-ami-sagemaker-inference-gpu-4-1", "al2-ami-sagemaker-inference-gpu-3-1"
T4, A10G, A100, V100 = "Tesla T4", "NVIDIA A10G", "NVIDIA A100-SXM4-40GB", "Tesla V100-SXM2-16GB"
RTX_4090 = "NVIDIA GeForce RTX 4090"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Files of a machine: by default with a GPU, a new driver, compat libraries and torch for CUDA 13."""

    gpus: tuple[str, ...] = (A10G,)
    driver: str | None = "580.95.05"
    module: str = CLOSED
    nodes: tuple[str, ...] = ("nvidia0", "nvidiactl", "nvidia-uvm")
    smi: str | None = None
    compat: str | None = COMPAT_130
    torch: tuple[str, str | None] | None = CU130
    device: str | None = None
    environ: dict[str, str] = field(default_factory=dict)

    def build(self, root: Path) -> Path:
        files = {f"dev/{node}": "" for node in self.nodes}
        if self.driver is not None:
            files["proc/driver/nvidia/version"] = self.module.format(self.driver)
        for number, name in enumerate(self.gpus):
            files[f"proc/driver/nvidia/gpus/0000:{number:02}:00.0/information"] = GPU_FILE.format(name)
        if self.torch is not None:
            files["torch/version.py"] = VERSION_PY.format(*self.torch)
        if self.smi is not None:
            files["usr/bin/nvidia-smi"] = f"#!/bin/sh\n{self.smi}\n"
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        if self.smi is not None:
            (root / "usr/bin/nvidia-smi").chmod(0o755)
        if self.compat is not None:
            link_compat(root, self.compat)
        return root

    def decision(self, root: Path) -> Decision:
        self.build(root)
        return decide(read_facts(root, self.environ, root / "torch", timeout_s=0.5), self.device)


def link_compat(root: Path, driver: str) -> None:
    """Lay out the files as the package cuda-compat does: /usr/local/cuda is a link, and so is libcuda.so.1."""
    directory = root / "usr/local/cuda-13.0/compat"
    directory.mkdir(parents=True)
    (root / "usr/local/cuda").symlink_to("cuda-13.0")
    (directory / f"libcuda.so.{driver}").touch()
    (directory / "libcuda.so.1").symlink_to(f"libcuda.so.{driver}")


def smi(*rows: str) -> str:
    """Return the script of an nvidia-smi that prints these rows: name, driver and capability."""
    return "\n".join(f"echo '{row}'" for row in rows)


OLD_SMI = """case $1 in *compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; exit 2;; esac
echo 'Tesla T4, 470.256.02'"""
BROKEN_SMI = "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9"
HANGING_SMI = "exec tail -f /dev/null"

Row = tuple[str, Machine, Action, tuple[str, ...]]
ROWS: list[Row] = [
    # What there is
    ("no GPU", Machine(gpus=(), driver=None, nodes=()), "no_gpu", ()),
    ("a driver but no device nodes", Machine(nodes=("nvidiactl", "nvidia-uvm")), "no_gpu", ()),
    ("void", Machine(nodes=(), environ={"NVIDIA_VISIBLE_DEVICES": "void"}, driver="470.57.02"), "no_gpu", ()),
    (
        "void, as CDI sets it beside the GPU it injects",
        Machine(environ={"NVIDIA_VISIBLE_DEVICES": "void"}, driver="470.57.02"),
        "refuse",
        ("470.57.02",),
    ),
    ("hidden", Machine(environ={"CUDA_VISIBLE_DEVICES": ""}, driver="470.57.02"), "no_gpu", ()),
    ("hidden by -1", Machine(environ={"CUDA_VISIBLE_DEVICES": "-1"}, driver="470.57.02"), "no_gpu", ()),
    ("one of several", Machine(environ={"CUDA_VISIBLE_DEVICES": "1,0"}, driver="470.57.02"), "refuse", ()),
    # The host's driver is enough
    ("as new as compat", Machine(), "use_host", ("driver 580.95.05 is new enough", "CUDA 13.0", "driver 580 or newer")),
    ("newer than compat", Machine(driver="595.91.07", module=OPEN), "use_host", ("driver 595.91.07 is new enough",)),
    ("older than compat, new enough", Machine(driver="580.65.06"), "use_host", ("580.65.06 is new enough",)),
    ("CUDA 13.2 on 13.0's driver", Machine(torch=("2.13.0+cu132", "13.2")), "use_host", ("CUDA 13.2",)),
    ("GeForce", Machine(gpus=(RTX_4090,)), "use_host", ("new enough",)),
    ("the oldest that goes", Machine(gpus=(), smi=smi("Tesla T4, 580.95.05, 7.5")), "use_host", ("new enough",)),
    ("CUDA 12 on 525", Machine(torch=CU126, driver="525.60.13"), "use_host", ("driver 525 or newer",)),
    ("CUDA 12 on 580", Machine(torch=CU126), "use_host", ("CUDA 12.6",)),
    ("V100 with a 12.6 wheel", Machine(torch=CU126, gpus=(V100,)), "use_host", ("new enough",)),
    # Older, and compat helps
    ("535", Machine(driver="535.161.08"), "use_compat", ("535.161.08 alone is too old", "driver 580.95.05 are used")),
    ("550, open module", Machine(driver="550.163.01", module=OPEN), "use_compat", ("550.163.01",)),
    ("570 on a T4", Machine(driver="570.172.08", gpus=(T4,)), "use_compat", ()),
    ("several GPUs", Machine(driver="535.161.08", gpus=(A100,) * 8), "use_compat", ()),
    ("MIG", Machine(driver="535.161.08", gpus=(f"{A100} MIG 1g.5gb",)), "use_compat", ()),
    ("DGX Station", Machine(driver="535.161.08", gpus=(A100, A100, "NVIDIA DGX Display")), "use_compat", ()),
    ("H100", Machine(driver="535.129.03", gpus=("NVIDIA H100 80GB HBM3",)), "use_compat", ()),
    (
        "CUDA 12.6 on 470",
        Machine(torch=CU126, driver="470.256.02", compat="560.35.05"),
        "use_compat",
        ("driver 525 or newer", "driver 560.35.05 are used"),
    ),
    # Older, and compat does not help
    (
        "470",
        Machine(driver="470.256.02"),
        "refuse",
        ("driver 470.256.02 is too old", "work on drivers 535, 550, 565, 570, 575 only", AMI_13, "Turing (7.5)"),
    ),
    ("525", Machine(driver="525.147.05"), "refuse", ("525.147.05", AMI_13)),
    ("545, no branch of NVIDIA's list", Machine(driver="545.23.08"), "refuse", ("545.23.08", AMI_13)),
    ("no compat", Machine(driver="535.161.08", compat=None), "refuse", ("no compat libraries in", AMI_13)),
    ("compat for 12.9", Machine(driver="535.161.08", compat="575.57.08"), "refuse", ("575.57.08, too old", AMI_13)),
    (
        "GeForce, 570",
        Machine(driver="570.172.08", gpus=(RTX_4090,)),
        "refuse",
        ("data-centre GPUs only", RTX_4090),
    ),
    ("TITAN", Machine(driver="570.172.08", gpus=("NVIDIA TITAN RTX",)), "refuse", ("data-centre GPUs only",)),
    (
        "CUDA 12.6 on 450",
        Machine(torch=CU126, driver="450.248.02", compat="560.35.05"),
        "refuse",
        (
            "CUDA 12.6",
            "driver 525 or newer",
            "drivers 470, 535, 550 only",
            AMI_12,
            "Maxwell (5.x)",
            "and Hopper (9.0).",
        ),
    ),
    # The GPU is too old for any driver
    ("P3", Machine(gpus=(V100,)), "refuse", (V100, "Volta (7.0)", "runs on Turing (7.5)", "ml.g5", AMI_13)),
    ("P2", Machine(gpus=("Tesla K80",) * 2, driver="470.256.02"), "refuse", ("Tesla K80", "Kepler (3.x)", "ml.g5")),
    ("G3", Machine(gpus=("Tesla M60",)), "refuse", ("Tesla M60", "Maxwell (5.x)", AMI_13)),
    ("P4", Machine(gpus=("Tesla P4",)), "refuse", ("Tesla P4", "Pascal (6.x)", AMI_13)),
    ("P100", Machine(gpus=("Tesla P100-PCIE-16GB",)), "refuse", ("Pascal (6.x)", "Blackwell (10.x, 12.x)")),
    ("virtual P4", Machine(gpus=("GRID P4-8Q",)), "refuse", ("Pascal (6.x)",)),
    ("GTX 1080", Machine(gpus=("NVIDIA GeForce GTX 1080 Ti",)), "refuse", ("Pascal (6.x)",)),
    ("K80 with a 12.6 wheel", Machine(torch=CU126, gpus=("Tesla K80",)), "refuse", ("runs on Maxwell (5.x)", AMI_12)),
    (
        "a model that only nvidia-smi knows the capability of",
        Machine(gpus=(), smi=smi("Graphics Device, 580.95.05, 6.1")),
        "refuse",
        ("Graphics Device", "Pascal (6.x)"),
    ),
    # torch
    ("CPU build", Machine(torch=CPU_BUILD), "no_gpu", (A10G, "torch 2.13.0+cpu is built without CUDA", "on the CPU")),
    (
        "CPU build, though a GPU is asked for",
        Machine(torch=CPU_BUILD, device="cuda:0"),
        "refuse",
        ("LONGHAUL_DEVICE is cuda:0", A10G, "without CUDA"),
    ),
    # nvidia-smi, where the files don't say enough
    ("470 by nvidia-smi", Machine(gpus=(), driver=None, smi=OLD_SMI), "refuse", ("470.256.02", AMI_13)),
    (
        "all by nvidia-smi",
        Machine(gpus=(), driver=None, smi=smi("NVIDIA L4, 550.163.01, 8.9", "NVIDIA L4, 550.163.01, 8.9")),
        "use_compat",
        ("550.163.01",),
    ),
    (
        "GeForce by nvidia-smi",
        Machine(gpus=(), driver="550.163.01", smi=smi(f"{RTX_4090}, 550.163.01, 8.9")),
        "refuse",
        (RTX_4090,),
    ),
    (
        "a garbled version file",
        Machine(module="garbage {0}\n", driver="535.161.08", smi=smi("NVIDIA A10G, 580.95.05, 8.6")),
        "use_host",
        ("580.95.05",),
    ),
]

UNSURE: list[Row] = [
    ("an unreadable driver", Machine(driver=None), "use_host", ("version can't be read", "driver 580 or newer")),
    ("garbage, no nvidia-smi", Machine(module="garbage {0}"), "use_host", ("version can't be read",)),
    ("a broken nvidia-smi", Machine(driver=None, smi=BROKEN_SMI), "use_host", ("version can't be read",)),
    ("a hanging nvidia-smi", Machine(driver=None, smi=HANGING_SMI), "use_host", ("version can't be read",)),
    ("an unknown torch", Machine(torch=None, driver="470.57.02"), "use_host", ("CUDA release can't be read",)),
    ("a future CUDA", Machine(torch=("3.0", "14.0")), "use_host", ("no driver is known for CUDA 14.0",)),
    ("an unknown GPU on an old driver", Machine(gpus=(), driver="535.161.08"), "use_compat", ("model can't be read",)),
    (
        "an RTX card on an old driver",
        Machine(gpus=("NVIDIA RTX A6000",), driver="550.163.01"),
        "use_compat",
        ("some RTX cards only", "RTX A6000"),
    ),
    (
        "a GeForce beside an A100 on an old driver",
        Machine(gpus=(A100, RTX_4090), driver="550.163.01"),
        "use_compat",
        (f"don't work on {RTX_4090}", "CUDA_VISIBLE_DEVICES"),
    ),
    (
        "compat libraries of the future",
        Machine(driver="535.161.08", compat="620.10.01"),
        "use_compat",
        ("not known which drivers they work on",),
    ),
    ("one old GPU of two", Machine(gpus=(A10G, V100)), "use_host", (f"{V100} is too old a GPU", "keep the engine off")),
]


def ids(rows: list[Row]) -> list[str]:
    return [row[0] for row in rows]


@pytest.mark.parametrize(("_", "machine", "action", "said"), ROWS, ids=ids(ROWS))
def test_machine_leads_to_decision(
    _: str, machine: Machine, action: Action, said: tuple[str, ...], tmp_path: Path
) -> None:
    decision = machine.decision(tmp_path)
    assert decision.action == action, decision
    assert [each for each in said if each not in decision.sentence] == []
    assert decision.is_warning == (machine.torch == CPU_BUILD and action == "no_gpu")
    assert bool(decision.sentence) == (action != "no_gpu" or decision.is_warning)


@pytest.mark.parametrize(("_", "machine", "action", "said"), UNSURE, ids=ids(UNSURE))
def test_unknown_facts_warn_instead_of_refusing(
    _: str, machine: Machine, action: Action, said: tuple[str, ...], tmp_path: Path
) -> None:
    decision = machine.decision(tmp_path)
    assert (decision.action, decision.is_warning) == (action, True), decision
    assert [each for each in said if each not in decision.sentence] == []


OURS = "/opt/ours"


@pytest.mark.parametrize(
    ("machine", "before", "after"),
    [
        (Machine(driver="535.161.08"), "", "{compat}"),
        (Machine(driver="535.161.08"), OURS, f"{{compat}}:{OURS}"),
        (Machine(driver="535.161.08"), f"{OURS}:{{compat}}:/b", f"{{compat}}:{OURS}:/b"),
        (Machine(), OURS, OURS),
        (Machine(), f"{{compat}}:{OURS}", OURS),
        (Machine(driver="595.91.07"), f"{OURS}:{{real}}/:/b", f"{OURS}:/b"),
        (Machine(driver="595.91.07"), "{compat}", ""),
        (Machine(driver=None), f"{{compat}}:{OURS}", None),
        (Machine(torch=None), f"{{compat}}:{OURS}", None),
        (Machine(nodes=()), f"{{compat}}:{OURS}", None),
    ],
)
def test_compat_libraries_are_used_only_if_needed(
    machine: Machine, before: str, after: str | None, tmp_path: Path
) -> None:
    places = {"compat": tmp_path / "usr/local/cuda/compat", "real": tmp_path / "usr/local/cuda-13.0/compat"}
    machine.environ["LD_LIBRARY_PATH"] = before.format(**places)
    assert machine.decision(tmp_path).library_path == (after if after is None else after.format(**places))


def test_missing_or_unversioned_compat_libraries_are_ignored(tmp_path: Path) -> None:
    root = Machine().build(tmp_path)
    (library,) = (root / "usr/local/cuda/compat").glob("libcuda.so.580*")
    library.unlink()
    assert read_facts(root, {}, None).compat is None  # the link dangles
    (root / "usr/local/cuda/compat/libcuda.so.1").unlink()
    (root / "usr/local/cuda/compat/libcuda.so.1").touch()
    assert read_facts(root, {}, None).compat is None


def test_kernel_module_spares_the_nvidia_smi_run(tmp_path: Path) -> None:
    root = Machine(smi=f"touch {tmp_path}/ran").build(tmp_path)
    assert read_facts(root, {}, None).gpus == (GPU(name=A10G),)
    assert not (tmp_path / "ran").exists()


def test_hanging_nvidia_smi_leaves_no_process(tmp_path: Path) -> None:
    node = str(tmp_path / "dev/nvidia0")
    root = Machine(driver=None, smi=f"touch {tmp_path}/ran; tail -f {node} & tail -f {node}").build(tmp_path)
    assert read_facts(root, {}, None, timeout_s=0.5).driver is None
    assert (tmp_path / "ran").exists()
    eventually(lambda: not [each for each in psutil.process_iter(["cmdline"]) if node in (each.info["cmdline"] or [])])


def test_cpu_device_skips_the_check(tmp_path: Path) -> None:
    root = Machine(driver=None, smi=f"touch {tmp_path}/ran").build(tmp_path)
    assert check("cpu", root=root, torch_dir=root / "torch") == NO_GPU
    assert not (tmp_path / "ran").exists()
    check("cuda", root=root, torch_dir=root / "torch", environ={})
    assert (tmp_path / "ran").exists()


def test_refusal_is_raised_with_its_sentence(tmp_path: Path) -> None:
    root = Machine(driver="470.256.02").build(tmp_path)
    with pytest.raises(UnfitDriver) as caught:
        check("cuda", root=root, torch_dir=root / "torch", environ={})
    assert str(caught.value) == (
        "the host's NVIDIA driver 470.256.02 is too old: CUDA 13.0 (torch 2.13.0+cu130) needs driver 580 or newer, and "
        "the compat libraries of driver 580.95.05 work on drivers 535, 550, 565, 570, 575 only. Update the driver; on "
        "SageMaker choose InferenceAmiVersion al2023-ami-sagemaker-inference-gpu-4-1 (driver 580, CUDA 13.0). torch "
        "2.13.0+cu130 runs on Turing (7.5), Ampere (8.x), Ada (8.9), Hopper (9.0) and Blackwell (10.x, 12.x)."
    )


@pytest.mark.parametrize("machine", [Machine(driver="470.256.02"), Machine(gpus=(V100,))])
def test_refusal_suggests_cpu_without_device_setting(machine: Machine, tmp_path: Path) -> None:
    facts = read_facts(machine.build(tmp_path), {}, tmp_path / "torch")
    assert decide(facts).sentence == decide(facts, "cuda").sentence + (
        " Or set LONGHAUL_DEVICE=cpu, to do without the GPU."
    )


@pytest.mark.parametrize(
    ("machine", "lines"),
    [
        (Machine(driver="535.161.08"), [(logging.INFO, "use_compat", "535.161.08", "13.0", [A10G])]),
        (Machine(driver=None), [(logging.WARNING, "use_host", None, "13.0", [A10G])]),
        (Machine(torch=CPU_BUILD), [(logging.WARNING, "no_gpu", "580.95.05", None, [A10G])]),
        (Machine(nodes=()), []),
    ],
)
def test_log_has_driver_cuda_and_decision(
    machine: Machine, lines: list[object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = machine.build(tmp_path)
    with caplog.at_level(logging.INFO):
        check(None, root=root, torch_dir=root / "torch", environ={})
    assert {vars(record)["action"] for record in caplog.records} <= {"driver_checked"}
    fields = ("levelno", "decision", "driver", "cuda", "gpus")
    assert [tuple(vars(record)[name] for name in fields) for record in caplog.records] == lines


# torch


def test_installed_torch_version_is_read() -> None:
    directory = find_torch()
    assert directory is not None
    read = read_torch(directory)
    cuda = torch.version.cuda
    assert read is not None and read.version == str(torch.__version__)
    assert (".".join(map(str, read.cuda)) if read.cuda else None) == cuda


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '2.13.0'\ncuda = '13.0'\n", Torch(version="2.13.0", cuda=(13, 0))),
        (VERSION_PY.format("2.13.0+rocm7.1", None), Torch(version="2.13.0+rocm7.1", cuda=None)),
        ("__version__ = '2.13.0'\n", None),
        ("__version__ = '2.13.0'\ncuda = 'thirteen'\n", None),
        ("__version__ = compute()\ncuda = '13.0'\n", None),
        ("cuda = (\n", None),
    ],
)
def test_wheel_version_is_read_without_import(text: str, expected: Torch | None, tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text(text)
    assert read_torch(tmp_path) == expected


def test_capabilities_equal_torchs_own_table() -> None:
    published = torch.cuda.PYTORCH_RELEASES_CODE_CC
    bounds = {release: (min(by["x86_64"]), max(by["x86_64"])) for release, by in published.items()}
    ours = {
        f"{release[0]}.{release[1]}": (10 * first[0] + first[1], 10 * last[0] + last[1])
        for release, (first, last) in CAPABILITIES.items()
    }
    assert ours == bounds
    assert {release[0] for release in CAPABILITIES} == set(MIN_DRIVER)
    assert [first for _, first in GENERATIONS] == sorted(first for _, first in GENERATIONS)


@pytest.mark.parametrize(
    ("machine", "needs_gpu"),
    [
        (Machine(), True),
        (Machine(driver="535.161.08"), True),
        (Machine(driver=None), True),
        (Machine(torch=CPU_BUILD), False),
        (Machine(nodes=()), False),
        (Machine(environ={"CUDA_VISIBLE_DEVICES": ""}), False),
    ],
)
def test_engine_needs_a_gpu_if_present(machine: Machine, needs_gpu: bool, tmp_path: Path) -> None:
    assert machine.decision(tmp_path).needs_gpu == needs_gpu


# The whole server, with a torch that reports the engine's library path and ends the engine.

PROGRAM = "import sys, container.__main__ as program; sys.exit(program.main(sys.argv[1]))"
TELLING_TORCH = "import os\nraise ImportError('libraries: ' + os.environ['LD_LIBRARY_PATH'])\n"
REAL_TORCH = (
    "import sys\nsys.path = [each for each in sys.path if each != {!r}]\ndel sys.modules['torch']\nimport torch\n"
)


@pytest.fixture
def start_on(start: Callable[..., Server], tmp_path: Path) -> Callable[..., Server]:
    def start_on(machine: Machine, torch: str = TELLING_TORCH, **settings: str) -> Server:
        root = machine.build(tmp_path / "root")
        (tmp_path / "python").mkdir()
        shutil.copytree(root / "torch", tmp_path / "python/torch")
        (tmp_path / "python/torch/__init__.py").write_text(torch.format(str(tmp_path / "python")))
        path = f"{tmp_path / 'python'}:{ROOT}"
        return start(command=(sys.executable, "-P", "-c", PROGRAM, str(root)), PYTHONPATH=path, **settings)

    return start_on


def test_too_old_driver_stops_the_start(start_on: Callable[..., Server]) -> None:
    server = start_on(Machine(driver="470.256.02"))
    assert server.exit_status() == 1
    (line,) = server.log_lines()
    assert (line["level"], line["action"]) == ("ERROR", "refused")
    assert "driver 470.256.02 is too old" in line["message"] and AMI_13 in line["message"]


def test_engine_gets_compat_libraries(start_on: Callable[..., Server], tmp_path: Path) -> None:
    server = start_on(Machine(driver="535.161.08"), LD_LIBRARY_PATH=OURS)
    said = f"libraries: {tmp_path / 'root/usr/local/cuda/compat'}:{OURS}"
    eventually(lambda: said in server.log())
    checked = [line for line in server.log_lines() if line.get("action") == "driver_checked"]
    assert [(line["decision"], line["driver"], line["compat"]) for line in checked] == [
        ("use_compat", "535.161.08", COMPAT_130)
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU here can be used")
def test_unusable_gpu_stops_the_start(start_on: Callable[..., Server]) -> None:
    server = start_on(Machine(), torch=REAL_TORCH)
    assert server.exit_status() == 1
    refusal = next(line["message"] for line in server.log_lines() if line["level"] == "ERROR")
    assert f"this machine has an NVIDIA GPU that PyTorch {torch.__version__} can't use: " in refusal
    assert refusal.endswith(". Set LONGHAUL_DEVICE=cpu to do without it")
