"""What a directory of journals keeps: nothing that has expired, and no more than its limit."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from container.journal.job_log import head_key
from container.journal.segment import CorruptFile, Head, opened
from container.journal.stores.directory import DirectoryStore
from container.journal.stores.store import Store, StoreError

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_JOBS = "jobs/"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """`expired` and `evicted`: jobs. `leftovers`: of writers that were killed. `bytes`: what is left."""

    expired: int = 0
    evicted: int = 0
    leftovers: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
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
) -> Swept:
    """Deletes expired jobs, then the oldest until all together are under `max_bytes`; none whose id is in `keep`.

    On S3 nothing: the bucket's lifecycle rule does it. Raises StoreError.
    """
    if not isinstance(store, DirectoryStore):
        return Swept()
    leftovers = store.sweep()
    now = clock()
    jobs = []
    for name in filter(_ID.fullmatch, store.folders(_JOBS)):
        try:
            jobs.append(_job(store, name))
        except StoreError as error:
            _LOG.warning("A job can't be looked at, and stays: %s", error)
    jobs.sort(key=lambda job: job.created)
    left = sum(job.bytes for job in jobs)
    expired = evicted = 0
    for job in jobs:
        is_expired = now - job.created > lifetime_s
        if job.id in keep or not (is_expired or left > max_bytes):
            continue
        if _job(store, job.id).created != job.created:  # begun anew meanwhile
            continue
        store.delete(f"{_JOBS}{job.id}/")
        left -= job.bytes
        expired += is_expired
        evicted += not is_expired
    if evicted:
        _LOG.warning("The journals of %d jobs are deleted before their time: all may take %d bytes", evicted, max_bytes)
    return Swept(expired=expired, evicted=evicted, leftovers=leftovers, bytes=left)


def _job(store: DirectoryStore, job_id: str) -> _Job:
    sizes = store.sizes(f"{_JOBS}{job_id}/")
    created = _created(store, job_id, sizes)
    return _Job(id=job_id, created=created, bytes=sum(sizes.values()))


def _created(store: DirectoryStore, job_id: str, keys: dict[str, int]) -> float:
    """By its newest intact head beside a claim; without one it is the folder's age that is left."""
    epochs = {key.split("/")[2] for key in keys if key.endswith("/head") and f"{key[:-4]}claim" in keys}
    for epoch in sorted((int(epoch) for epoch in epochs if epoch.isdecimal()), reverse=True):
        try:
            return opened(Head, store.get(head_key(job_id, epoch)) or b"").created
        except CorruptFile:
            continue
    return store.changed(f"{_JOBS}{job_id}/")
