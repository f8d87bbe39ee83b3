"""What makes two requests the same: the model, how the body is to be read, and the body."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import msgspec

from container.dialects.document import RequestHead
from container.dialects.plain_text import Options

_FORMAT = b"longhaul 1"
"""Another one where the same seed no longer gives the same tokens, or items are numbered in another way."""
_WHOLE_BYTES = 1 << 30
"""A second."""
_SAMPLE_BYTES = 4 << 10
_SAMPLES = 4096
"""Of a large file that does not say where its tensors are."""
_LONGEST_HEADER = 100 << 20


def model_identity(directory: str) -> str:
    """Of a model's files: small ones as a whole, and of large ones, weights, a piece of every tensor, as no training
    leaves one as it was. For a worker thread. Raises OSError."""
    digest = hashlib.sha256(_FORMAT)
    for path in sorted(Path(directory).iterdir()):
        if path.is_file() and not path.name.startswith("."):
            _add(digest, path.name.encode(errors="surrogateescape"))
            _add_file(digest, path)
    return digest.hexdigest()


class Fingerprint:
    """Of one request, whose body is added as it comes. It doesn't tell what the request says.

    `identity` is the server's part: its model and its settings, so far as they decide what is generated.
    """

    def __init__(self, identity: str, head: RequestHead) -> None:
        self._digest = hashlib.sha256(_FORMAT)
        for part in (identity, head.route, head.media_type):
            _add(self._digest, part.encode())
        if head.media_type == "text/plain":  # only there do attributes say how to generate
            for key in sorted(head.attributes.keys() & Options.model_fields.keys()):
                for value in sorted(head.attributes[key]):
                    _add(self._digest, f"{key}={value}".encode())

    def add(self, body: bytes | bytearray) -> None:
        """More of the body. Any size, and for a worker thread if it is large."""
        self._digest.update(body)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _add(digest: hashlib._Hash, part: bytes) -> None:
    digest.update(len(part).to_bytes(8))
    digest.update(part)


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8))
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
            return
        for offset in _offsets(file, size):
            file.seek(offset)
            digest.update(file.read(_SAMPLE_BYTES))


def _offsets(file: BinaryIO, size: int) -> list[int]:
    """Where to look: the header and every tensor of a safetensors file, its start and its middle, else all along."""
    length = int.from_bytes(file.read(8), "little")
    if 8 + length <= min(size, _LONGEST_HEADER):
        try:
            tensors = msgspec.json.decode(file.read(length))
            places = [entry["data_offsets"] for name, entry in tensors.items() if name != "__metadata__"]
            starts = [8 + length + start for first, end in places for start in (first, (first + end) // 2)]
            return [*range(0, 8 + length, _SAMPLE_BYTES), *sorted(starts)]
        except (
            msgspec.DecodeError,
            UnicodeDecodeError,
            RecursionError,
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
        ):
            pass
    return [(size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1) for sample in range(_SAMPLES)]
