"""What makes two requests the same: the model, how the body is to be read, and the body."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .dialects.attributes import Attributes
from .dialects.document import Route, media_type
from .dialects.text import Options

_FORMAT = b"longhaul 1"
"""Another one where the same seed no longer gives the same tokens, or items are numbered in another way."""
_WHOLE_BYTES = 64 << 20
_SAMPLES = 16
_SAMPLE_BYTES = 64 << 10


def model_identity(directory: str) -> str:
    """Of a model's files; of a large one, weights, only its size and some samples are read. For a worker thread.

    Raises OSError.
    """
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

    def __init__(self, identity: str, route: Route, content_type: str | None, custom_attributes: str | None) -> None:
        self._digest = hashlib.sha256(_FORMAT)
        media = media_type(content_type)
        for part in (identity, route, media):
            _add(self._digest, part.encode())
        if media == "text/plain":  # only there do attributes say how to generate
            for key, value in sorted(Attributes.parse(custom_attributes).pairs):
                if key in Options.model_fields:
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
        for sample in range(_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
