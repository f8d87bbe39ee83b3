"""Deletes journals from a directory, so that it keeps none that has expired, and no more than its limit."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from container.journal.job_reader import head_key
from container.journal.segment import CorruptFile, Head, decode
from container.journal.stores.directory import DirectoryStore
from container.journal.stores.store import Store, StoreError

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_JOBS = "jobs/"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoredJob:
    id: str
    created: float
    bytes: int


def sweep(
    store: Store,
    *,
    lifetime_s: float,
    max_bytes: int,
    keep: AbstractSet[str],
    clock: Callable[[], float] = time.time,
) -> None:
    """Delete expired jobs, then the oldest until all together are under `max_bytes`; none whose id is in `keep`.

    On S3 it does nothing: the bucket's lifecycle rule deletes old jobs. Raises StoreError.
    """
    if not isinstance(store, DirectoryStore):
        return
    store.sweep()
    now = clock()
    jobs = []
    for name in filter(_ID.fullmatch, store.folders(_JOBS)):
        try:
            jobs.append(_stored_job(store, name))
        except StoreError as error:
            _LOG.warning("a stored job can't be read, and stays: %s", error)
    jobs.sort(key=lambda job: job.created)
    size = sum(job.bytes for job in jobs)
    evicted = 0
    for job in jobs:
        is_expired = now - job.created > lifetime_s
        if job.id in keep or not (is_expired or size > max_bytes):
            continue
        if _stored_job(store, job.id).created != job.created:  # begun anew meanwhile
            continue
        store.delete(f"{_JOBS}{job.id}/")
        size -= job.bytes
        evicted += not is_expired
    if evicted:
        _LOG.warning("the journals of %d jobs are deleted before their time: the limit is %d bytes", evicted, max_bytes)


def _stored_job(store: DirectoryStore, job_id: str) -> _StoredJob:
    """Describe a job by its newest intact head beside a claim; without one its age is the folder's."""
    sizes = store.sizes(f"{_JOBS}{job_id}/")
    epochs = {key.split("/")[2] for key in sizes if key.endswith("/head") and f"{key[:-4]}claim" in sizes}
    for epoch in sorted((int(epoch) for epoch in epochs if epoch.isdecimal()), reverse=True):
        try:
            created = decode(Head, store.get(head_key(job_id, epoch)) or b"").created
            break
        except CorruptFile:
            continue
    else:
        created = store.changed(f"{_JOBS}{job_id}/")
    return _StoredJob(id=job_id, created=created, bytes=sum(sizes.values()))
