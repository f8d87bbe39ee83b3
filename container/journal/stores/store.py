"""A store of small immutable objects under ASCII keys, with `/` as in paths. It knows nothing of jobs."""

from __future__ import annotations

import re
from typing import Protocol

# A key becomes a path: nothing in it may lead out of the store or name a temporary file.
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


class StoreError(Exception):
    """A call of the store failed. The message names the store and the cause.

    A write that raised it may have happened all the same.
    """


class Store(Protocol):
    """A directory or a prefix of a bucket, which other processes may use at the same time.

    Any thread may call it. Every failure is a StoreError.
    """

    @property
    def is_local(self) -> bool:
        """Whether it goes with the machine."""
        ...

    @property
    def describe(self) -> str:
        """Its kind and address, for messages."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write a new object, whole or not at all, durable on return. False, and nothing is changed, if it exists."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write an object, whole or not at all, durable on return; replace it if it exists."""
        ...

    def get(self, key: str) -> bytes | None: ...

    def keys(self, prefix: str) -> list[str]:
        """List all keys that begin with `prefix`, sorted."""
        ...

    def folders(self, folder: str) -> list[str]:
        """List the names in `folder` that have a key below them, sorted. A directory also lists empty ones."""
        ...

    def exists(self, key: str) -> bool: ...

    def delete(self, prefix: str) -> None:
        """Delete all keys below `prefix`, which ends in `/`."""
        ...


def validate_key(key: str) -> str:
    """Return the key. Raises ValueError."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a key: {key!r}")
    return key


def validate_folder(prefix: str) -> str:
    """Return the prefix. Raises ValueError: an unfinished one would take a neighbour with it."""
    if not prefix.endswith("/"):
        raise ValueError(f"not a key followed by /: {prefix!r}")
    validate_key(prefix[:-1])
    return prefix
