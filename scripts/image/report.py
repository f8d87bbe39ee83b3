"""Bytes that a cold start pulls and unpacks, for each layer of an image with its largest directories. `report.py
IMAGE`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tarfile
import tempfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, Any

from tqdm import tqdm

MAX_DIRECTORIES = 4
CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
DEPTH = 7
"""Number of parts of the directories shown: /opt/longhaul/.venv/lib/python3.x/site-packages/torch."""


@dataclass
class Layer:
    made_by: str
    unpacked: int = 0
    """Bytes of the layer's tar."""
    pulled: int = 0
    """Bytes of the tar after gzip -6, as `docker push` sends and a host pulls it."""
    largest: Counter[str] = field(default_factory=Counter)
    """Bytes of the files by directory."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    show(measure_layers(parser.parse_args().image))


def measure_layers(image: str) -> list[Layer]:
    docker = os.environ.get("DOCKER", "docker")
    with tempfile.TemporaryFile() as file:
        subprocess.run([docker, "save", image], stdout=file, check=True)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            (manifest,) = _json(archive, "manifest.json")
            history = _json(archive, manifest["Config"])["history"]
            made_by = [entry.get("created_by", "") for entry in history if not entry.get("empty_layer")]
            layers = [Layer(_short(command)) for command in made_by]
            total = sum(archive.getmember(name).size for name in manifest["Layers"])
            with tqdm(total=total, unit="B", unit_scale=True, desc="compressing", disable=None) as bar:
                for name, layer in zip(manifest["Layers"], layers, strict=True):
                    _measure(archive, name, layer, bar)
    return layers


def _json(archive: tarfile.TarFile, name: str) -> Any:
    file = archive.extractfile(name)
    assert file is not None
    return json.load(file)


def _measure(archive: tarfile.TarFile, name: str, layer: Layer, bar: tqdm[Any]) -> None:
    file = _open(archive, name)
    compressor = zlib.compressobj(6)
    while chunk := file.read(CHUNK):
        if not layer.unpacked and chunk.startswith(GZIP):
            raise SystemExit("report: this engine keeps layers compressed (containerd's image store); not measured")
        layer.unpacked += len(chunk)
        layer.pulled += len(compressor.compress(chunk))
        bar.update(len(chunk))
    layer.pulled += len(compressor.flush())
    with tarfile.open(fileobj=_open(archive, name)) as content:
        for member in content:
            layer.largest["/" + "/".join(member.name.split("/")[:-1][:DEPTH])] += member.size


def _open(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    file = archive.extractfile(name)
    assert file is not None
    return file


def _short(made_by: str) -> str:
    """Shorten the layer's command to `COPY /pieces/torch/ /`, or say that it is the base or a RUN."""
    line = made_by.removesuffix(" # buildkit").strip()
    if line.startswith("RUN"):
        return "packages of the distribution" if "apt-get" in line else "RUN"
    return line if line.startswith("COPY") else "base image"


def show(layers: list[Layer]) -> None:
    print(f"{'unpacked':>10} {'pulled':>10}  layer")
    for layer in layers:
        if layer.unpacked < 1 << 16:
            continue
        print(f"{_mb(layer.unpacked)} {_mb(layer.pulled)}  {layer.made_by}")
        for path, size in layer.largest.most_common(MAX_DIRECTORIES):
            if size > layer.unpacked / 10:
                print(f"{_mb(size)} {'':10}    of it {path}")
    print(f"{_mb(sum(layer.unpacked for layer in layers))} {_mb(sum(layer.pulled for layer in layers))}  all")


def _mb(size: int) -> str:
    return f"{size / 1e6:7,.1f} MB"


if __name__ == "__main__":
    main()
