"""The jobs at work, and their journal's health: it may fail, and generation goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, TypeVar

from container.errors import Conflict, OutOfSpace
from container.jobs.attachment import Attachment
from container.jobs.job import Access, Job
from container.journal.job_log import DigestConflict, JobLog, job_id
from container.journal.output_table import OutputTable
from container.journal.retention import sweep
from container.journal.stores.store import Store, StoreError
from container.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 8
_PATIENCE_S = 15.0
_BROKEN_PATIENCE_S = 1.0
"""For the store's next answer when a job is looked up, and while it fails: longer than one hung connection to S3 takes.
Then the job begins anew, rather than to wait for ever. What the store has of it stays."""
_RETRY_S = 5.0
_SOON_BYTES = 1 << 20
"""Not yet in the journal: then it is written at once."""
_MOST_UNSAVED_BYTES = 256 << 20
"""Of all jobs, while the store fails. The job that goes beyond is no longer journalled."""
_SWEEP_S = 3600.0


class JobRegistry:
    """Owns the jobs that have requests attached or something that is not in the journal yet.

    Every `interval_s` all that was generated since is written. A store that fails costs no request anything: it is
    tried again until it takes everything. `ends_with_container`: the store does, so that nothing can be promised.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        *,
        interval_s: float,
        lifetime_s: float,
        max_bytes: int,
        spool_dir: str,
        ends_with_container: bool = False,
    ) -> None:
        self._store = store
        self._ends_with_container = ends_with_container
        self._metrics = metrics
        self._interval_s = interval_s
        self._lifetime_s = lifetime_s
        self._max_bytes = max_bytes
        self._spool_dir = spool_dir
        self._writer = f"{socket.gethostname()}:{os.getpid()}"
        self._jobs: dict[str, Job] = {}
        self._readers = ThreadPoolExecutor(_THREADS, thread_name_prefix="journal reader")
        self._writers = ThreadPoolExecutor(_THREADS, thread_name_prefix="journal writer")
        self._lookups = 0
        self._broken_by: Literal["reading", "writing"] | None = None
        self._unsaved_bytes = 0
        metrics.journal_unsaved.set_function(lambda: self._unsaved_bytes)
        self._soon = asyncio.Event()
        self._tasks: set[asyncio.Task[object]] = set()

    def start(self) -> None:
        """From now on it writes, and forgets what is too old."""
        self._run(self._save_forever())
        self._run(self._sweep_forever())

    async def attach(self, name: str | None, digest: str) -> Attachment:
        """The request's part in its job, to be given back with `release`.

        Raises Conflict where the name is another request's.
        """
        id = job_id(name, digest)
        while (job := self._jobs.get(id)) is not None and job.digest != digest:
            if job.opening.done():
                raise _conflict()
            await asyncio.wait({job.opening})  # it may be the one that is in the wrong
        is_new = job is None
        if job is None:
            job = self._jobs[id] = self._new_job(id, name, digest)
            job.opening = asyncio.create_task(self._open(job))
            job.opening.add_done_callback(_seen)
        attachment = Attachment(job)
        job.attachments.add(attachment)
        try:
            if not job.opening.done():
                await asyncio.shield(job.opening)
            if not is_new and (remembering := job.remember()) is not None:
                await asyncio.wait({remembering}, timeout=self._patience_s)
        except BaseException:
            self.release(attachment, is_complete=True)
            raise
        job.place(attachment)
        return attachment

    def release(self, attachment: Attachment, *, is_complete: bool) -> None:
        """`is_complete`: the client has all of its answer."""
        job = attachment.job
        job.release(attachment, is_complete=is_complete)
        if not job.attachments and self._jobs.get(job.id) is job:
            self._run(self._retire(job))

    def save_soon(self, attachment: Attachment) -> None:
        """What the request leaves unfinished, even while its answer is still on its way."""
        if self._broken_by is None:
            self._run(self._save(attachment.job))

    def freeze(self) -> None:
        """Nothing more is generated, whoever waits for it: all that there is can be saved."""
        for job in self._jobs.values():
            job.freeze()

    async def save_all(self) -> None:
        """What was generated until now. Where the store fails, the rest waits for the next time."""
        jobs = [job for job in self._jobs.values() if job.is_worth_saving or job.attachments]
        if self._broken_by is None or await self._is_back(jobs):
            await asyncio.gather(*map(self._save, jobs))

    async def _is_back(self, jobs: list[Job]) -> bool:
        """Whether the store takes anything. What it refuses may be wrong with one job alone."""
        is_refused = False
        for job in jobs:
            if not await self._save(job):
                is_refused = True
                break
            if self._broken_by is None:
                return True
        try:
            await self._write(partial(self._store.put, "probe", b""))
        except StoreError as error:
            self._broke("writing", error)
            return False
        if not is_refused:
            self._healed("writing")
        return True

    def is_saved(self, attachment: Attachment) -> bool:
        """Whether the store has all that was generated for it, and outlives this container."""
        return attachment.job.is_saved(attachment) and not self._ends_with_container

    async def write_beside(self, id: str, data: bytes) -> None:
        """What is told of a job's progress, over what was told before. Raises StoreError."""
        await self._write(partial(self._store.put, f"jobs/{id}/progress.json", data))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown(wait=False, cancel_futures=True)

    def _new_job(self, id: str, name: str | None, digest: str) -> Job:
        access = Access(
            new_log=lambda: self._new_log(id, digest),
            new_table=lambda: OutputTable(self._spool_dir),
            reading=self._read,
            writing=self._write,
        )
        return Job(id, name, digest, access, on_note=partial(self._noted, id))

    def _new_log(self, id: str, digest: str) -> JobLog:
        return JobLog(
            self._store, id, digest, writer=self._writer, lifetime_s=self._lifetime_s, max_bytes=self._max_bytes
        )

    async def _read(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function)

    async def _write(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writers, function)

    @property
    def _patience_s(self) -> float:
        return _PATIENCE_S if self._broken_by is None else _BROKEN_PATIENCE_S

    async def _open(self, job: Job) -> None:
        """Raises Conflict. Whatever else happens, the job can begin."""
        try:
            await self._look_up(job)
            self._healed("reading")
        except DigestConflict:
            if self._jobs.get(job.id) is job:
                del self._jobs[job.id]
            raise _conflict() from None
        except (StoreError, OutOfSpace) as error:
            job.go_ahead()
            self._broke("reading", error)
        finally:
            if not job.attachments and self._jobs.get(job.id) is job:  # who asked for it has left
                self._run(self._retire(job))

    async def _look_up(self, job: Job) -> None:
        if self._broken_by is not None and self._lookups >= _THREADS:
            raise StoreError(f"{self._store.describe}: as many jobs as can be wait for an answer already")
        self._lookups += 1
        opening = asyncio.create_task(job.open())
        opening.add_done_callback(_seen)  # it may come too late
        opening.add_done_callback(self._looked_up)
        while not opening.done():
            heard, patience_s = job.answers_heard, self._patience_s
            await asyncio.wait({opening}, timeout=patience_s)
            if not opening.done() and heard == job.answers_heard:
                raise StoreError(f"{self._store.describe}: no answer in {patience_s:g} s")
        opening.result()

    def _looked_up(self, opening: asyncio.Task[None]) -> None:
        self._lookups -= 1

    async def _save_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                pause_s = self._interval_s if self._broken_by is None else min(_RETRY_S, self._interval_s)
                async with asyncio.timeout(pause_s):
                    await self._soon.wait()
            self._soon.clear()
            try:
                await self.save_all()
                for job in list(self._jobs.values()):
                    await self._forget(job)
            except Exception:
                logger.exception("the journal was not written, and will be at the next time")
            if self._broken_by is not None:  # whatever is due soon
                await asyncio.sleep(min(_RETRY_S, self._interval_s))

    async def _save(self, job: Job) -> bool:
        """False where the store failed."""
        try:
            written = await job.save()
        except StoreError as error:
            self._broke("writing", error)
            return False
        if written:
            self._metrics.journal_bytes.inc(written)
            self._healed("writing")
        return True

    async def _retire(self, job: Job) -> None:
        """Nobody is attached any more."""
        if job.is_worth_saving and self._broken_by is None:
            await self._save(job)
        await self._forget(job)

    async def _forget(self, job: Job) -> None:
        """If there is no more to do for it. Else the next turns see to it."""
        is_due = job.is_worth_saving and job.has_unsaved
        if not job.attachments and not is_due and job.opening.done() and self._jobs.get(job.id) is job:
            del self._jobs[job.id]
            self._unsaved_bytes -= job.unsaved_bytes
            await self._read(job.close)

    def _noted(self, id: str, size: int) -> None:
        self._unsaved_bytes += size
        if size > 0 and self._unsaved_bytes >= _SOON_BYTES and self._broken_by is None:
            self._soon.set()
        if size > 0 and self._unsaved_bytes > _MOST_UNSAVED_BYTES:
            largest = max(self._jobs.values(), key=lambda job: job.unsaved_bytes)
            largest.give_up("the store has failed for too long, and there is no memory for more")

    def _broke(self, by: Literal["reading", "writing"], error: object) -> None:
        self._metrics.journal_errors.inc()
        if self._broken_by is None:
            message = "the journal can't be used, work goes on without it: %s"
            logger.warning(message, error, extra={"action": "journal_broken"})
        if self._broken_by != "writing":
            self._broken_by = by
        self._metrics.journal_broken.set(1)

    def _healed(self, by: Literal["reading", "writing"]) -> None:
        """What can be written can be read."""
        if self._broken_by == by or (by == "writing" and self._broken_by is not None):
            self._broken_by = None
            self._metrics.journal_broken.set(0)
            logger.warning("the journal can be used again", extra={"action": "journal_healed"})

    async def _sweep_forever(self) -> None:
        while True:
            keep = set(self._jobs)
            try:
                await self._read(
                    partial(sweep, self._store, lifetime_s=self._lifetime_s, max_bytes=self._max_bytes, keep=keep)
                )
            except StoreError as error:
                self._broke("reading", error)
            except Exception:
                logger.exception("what is too old in the journal was not deleted, and will be at the next time")
            await asyncio.sleep(_SWEEP_S)

    def _run(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _seen(task: asyncio.Task[None]) -> None:
    """Whoever waits for it has left: nobody else needs to know what it ended with."""
    if not task.cancelled():
        task.exception()


def _conflict() -> Conflict:
    message = "a job of this name has another request; send the same request again, or choose another name"
    return Conflict(message, param="job", code="job_conflict")
