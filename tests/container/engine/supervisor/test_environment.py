from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from container.engine.messages import EngineConfig
from container.engine.supervisor.environment import engine_environment
from container.engine.worker.packed_linear import can_pack

CONFIG = EngineConfig(model_dir="/model", threads=1)

STEPS_OF_ALL_SIZES = """
import ctypes, torch
from container.engine.worker.packed_linear import PackedLinear

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Heap

def used_bytes():
    heap = libc.mallinfo2()
    return heap.uordblks + heap.hblkhd

torch.set_grad_enabled(False)
layers = [PackedLinear(torch.nn.Linear(*shape)) for shape in ((64, 64), (64, 32), (64, 128), (128, 64))]
before = used_bytes()
for rows in range(1, 257):
    for layer in layers:
        layer(torch.zeros(rows, layer.in_features))
print((used_bytes() - before) / 2**20)
"""


def grown_mib(environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", STEPS_OF_ALL_SIZES]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not can_pack(torch.device("cpu"), torch.float32), reason="oneDNN's kernels on x86"
)
def test_cached_kernels_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded = grown_mib(engine_environment(CONFIG, None))
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "1024")  # the libraries' own defaults, which the user's setting may bring back
    assert bounded < grown_mib(engine_environment(CONFIG, None)) / 2


def test_engine_uses_no_hub_and_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    environment = engine_environment(CONFIG, "/driver")
    assert "HF_TOKEN" not in environment
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert (environment["OMP_NUM_THREADS"], environment["LD_LIBRARY_PATH"]) == ("1", "/driver")
