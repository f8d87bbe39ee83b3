"""Model digest: equal for two copies of a model's files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import msgspec

from container.dialects.document import DIGEST_FORMAT

_WHOLE_FILE_BYTES = 1 << 30
"""Size up to which a file is read as a whole, which takes a second."""
_SAMPLE_BYTES = 4 << 10
_SAMPLES = 4096
"""Number of pieces that are read of a large file that does not say where its tensors are."""
_MAX_HEADER_BYTES = 100 << 20


def model_digest(directory: str) -> str:
    """Return the hex digest of a model's files: small ones as a whole; of large ones a piece of every tensor, as no
    training leaves one as it was. For a worker thread. Raises OSError."""
    digest = hashlib.sha256(DIGEST_FORMAT)
    for path in sorted(Path(directory).iterdir()):
        if path.is_file() and not path.name.startswith("."):
            name = path.name.encode(errors="surrogateescape")
            digest.update(len(name).to_bytes(8) + name)
            _add_file(digest, path)
    return digest.hexdigest()


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8))
        if size <= _WHOLE_FILE_BYTES:
            digest.update(file.read())
            return
        for offset in _sample_offsets(file, size):
            file.seek(offset)
            digest.update(file.read(_SAMPLE_BYTES))


def _sample_offsets(file: BinaryIO, size: int) -> list[int]:
    """Return where to read: the header of a safetensors file and each tensor's start and middle, else all along."""
    length = int.from_bytes(file.read(8), "little")
    if 8 + length <= min(size, _MAX_HEADER_BYTES):
        try:
            tensors = msgspec.json.decode(file.read(length))
            spans = [entry["data_offsets"] for name, entry in tensors.items() if name != "__metadata__"]
            starts = [8 + length + start for first, end in spans for start in (first, (first + end) // 2)]
            return [*range(0, 8 + length, _SAMPLE_BYTES), *sorted(starts)]
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
            pass  # not a safetensors file: DecodeError and UnicodeDecodeError are ValueErrors
    return [(size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1) for sample in range(_SAMPLES)]
