"""Where a journal lies: small immutable objects under `/`-separated ASCII keys. Knows nothing of jobs."""

from __future__ import annotations

import re
from typing import Protocol

# A key becomes a path: nothing in it may lead out of the store or name a temporary file.
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


class StoreError(Exception):
    """The store did not do what it was asked. The message names the store and the cause.

    A write that raised it may have happened all the same.
    """


class Store(Protocol):
    """Any thread may, at any time, and other processes beside it. Every failure is a StoreError."""

    @property
    def is_local(self) -> bool:
        """Whether it goes with the machine."""
        ...

    @property
    def describe(self) -> str:
        """For log lines."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Durable on return, and there as a whole or not at all. False, and nothing is changed, if the key exists."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """As `create`, over what is there."""
        ...

    def get(self, key: str) -> bytes | None: ...

    def keys(self, prefix: str) -> list[str]:
        """All that begin with it, sorted."""
        ...

    def folders(self, folder: str) -> list[str]:
        """The names of those in it that have a key below them, sorted. A directory also has some without one."""
        ...

    def exists(self, key: str) -> bool: ...

    def delete(self, prefix: str) -> None:
        """All keys below it; it ends in `/`."""
        ...

    def close(self) -> None: ...


def open_store(uri: str, *, kms_key: str | None = None) -> Store:
    """The store that `s3://bucket/prefix` or a directory's path names.

    Raises ValueError, which says what was expected, for one that can't be used whatever time may bring.
    """
    if uri.startswith("s3://"):
        # boto3 takes a third of a second to import, and a directory needs none of it.
        from container.journal.stores.s3 import S3Store

        return S3Store(uri, kms_key=kms_key)
    if not uri or "://" in uri or "\0" in uri:
        raise ValueError(f"expected s3://bucket/prefix or the path of a directory, not {uri!r}")
    if kms_key is not None:
        raise ValueError(f"a KMS key is for s3:// only, and {uri!r} is a directory")
    from container.journal.stores.directory import DirectoryStore

    return DirectoryStore(uri)


def checked(key: str) -> str:
    """Raises ValueError."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a key: {key!r}")
    return key


def checked_folder(prefix: str) -> str:
    """Raises ValueError: an unfinished prefix would take a neighbour with it."""
    if not prefix.endswith("/"):
        raise ValueError(f"not a key followed by /: {prefix!r}")
    checked(prefix[:-1])
    return prefix
