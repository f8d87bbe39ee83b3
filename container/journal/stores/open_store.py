"""Opens the store that a URI names."""

from __future__ import annotations

from container.journal.stores.directory import DirectoryStore
from container.journal.stores.store import Store


def open_store(uri: str, *, kms_key: str | None = None) -> Store:
    """Open the store that `s3://bucket/prefix` or a directory's path names.

    Raises ValueError, which says what was expected, for one that can never be used.
    """
    if uri.startswith("s3://"):
        # boto3 takes a third of a second to import, and a directory needs none of it.
        from container.journal.stores.s3 import S3Store

        return S3Store(uri, kms_key=kms_key)
    if not uri or "://" in uri or "\0" in uri:
        raise ValueError(f"expected s3://bucket/prefix or the path of a directory, not {uri!r}")
    if kms_key is not None:
        raise ValueError(f"a KMS key is for s3:// only, and {uri!r} is a directory")
    return DirectoryStore(uri)
