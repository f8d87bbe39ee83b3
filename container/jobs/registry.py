"""The jobs at work, and when their journals are written."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from container.errors import Conflict
from container.jobs.job import Attachment, Job
from container.jobs.job_journal import Backlog, JournalContext
from container.jobs.journal_health import JournalHealth
from container.journal.job_reader import DigestConflict
from container.journal.retention import sweep
from container.journal.stores.store import Store, StoreError
from container.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_THREADS = 8
_RETRY_INTERVAL_S = 10.0
_SWEEP_INTERVAL_S = 3600.0
_CLOSE_TIMEOUT_S = 3.0
"""Seconds that the end of an answer waits for the store."""


def job_id(name: str | None, digest: str) -> str:
    """Return the id of a named job, or of one known by its digest alone. It is fit for a key, and hides the name."""
    return hashlib.sha256((f"digest:{digest}" if name is None else f"name:{name}").encode()).hexdigest()


class JobRegistry:
    """Owns the jobs that have requests attached, or something that the store doesn't have yet.

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
        readers = ThreadPoolExecutor(_THREADS, thread_name_prefix="journal reader")
        writers = ThreadPoolExecutor(_THREADS, thread_name_prefix="journal writer")
        self._store = store
        self._metrics = metrics
        self._interval_s = interval_s
        self._ends_with_container = ends_with_container
        self._health = JournalHealth(store, metrics, writers)
        self._backlog = Backlog()
        self._context = JournalContext(
            store=store,
            health=self._health,
            backlog=self._backlog,
            readers=readers,
            writers=writers,
            writer=f"{socket.gethostname()}:{os.getpid()}",
            lifetime_s=lifetime_s,
            max_bytes=max_bytes,
            spool_dir=spool_dir,
        )
        self._jobs: dict[str, Job] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[object]] = set()
        metrics.journal_unsaved.set_function(lambda: self._backlog.bytes)

    def start(self) -> None:
        """Begin to write the journals, and to delete those that are too old."""
        self._loops = [asyncio.create_task(self._save_forever()), asyncio.create_task(self._sweep_forever())]

    def close(self) -> None:
        for task in (*self._loops, *self._tasks):
            task.cancel()
        for threads in (self._context.readers, self._context.writers):
            threads.shutdown(wait=False, cancel_futures=True)

    async def wait_idle(self) -> None:
        """Wait until all saving that requests began, and the jobs that they left, are done with."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def __len__(self) -> int:
        """Jobs at work."""
        return len(self._jobs)

    async def attach(self, name: str | None, digest: str) -> Attachment:
        """Attach a request to its job, until `release`. Raises Conflict where the name is another request's."""
        id = job_id(name, digest)
        while (job := self._jobs.get(id)) is not None and job.digest != digest:
            if job.opening.done():
                raise _conflict()
            await asyncio.wait({job.opening})  # it may be the one that is in the wrong
        is_new = job is None
        if job is None:
            job = self._jobs[id] = Job(id, name, digest, self._context)
            job.opening = asyncio.create_task(self._open(job))
            # Retrieved: asyncio would report an error that no request waits for any more.
            job.opening.add_done_callback(lambda opening: opening.cancelled() or opening.exception())
        attachment = Attachment(job)
        job.attachments.add(attachment)
        try:
            if not job.opening.done():
                await asyncio.shield(job.opening)
            if not is_new and (loading := job.journal.load_outputs()) is not None:
                await asyncio.wait({loading}, timeout=self._health.timeout_s)
        except BaseException:
            self.release(attachment, is_complete=True)
            raise
        attachment.take_slot()
        return attachment

    def release(self, attachment: Attachment, *, is_complete: bool) -> None:
        """Let a request go. `is_complete`: its client has all of its answer."""
        job = attachment.job
        if job.release(attachment, is_complete=is_complete) and self._jobs.get(job.id) is job:
            self._forget(job)
        else:
            self._retire_if_left(job)

    def set_slot_aside(self, attachment: Attachment) -> None:
        """Call once a request has its whole answer, and before that is sent: mostly it arrives, and nothing is left."""
        attachment.job.set_slot_aside(attachment)

    def has_open_slot(self, attachment: Attachment) -> bool:
        """Whether the request's slot is to be closed before its client has the whole answer.

        A store that fails holds up no answer: then the slot is closed later, by `release`.
        """
        return not self._health.is_broken and attachment.job.has_open_slot(attachment)

    async def close_slot(self, attachment: Attachment, timeout_s: float) -> None:
        """Use the request's slot for no other one, whatever becomes of this server. `timeout_s` bounds the wait."""
        attachment.job.close_slot(attachment)
        saving = self._run(self._save(attachment.job))
        _, late = await asyncio.wait({saving}, timeout=min(timeout_s, _CLOSE_TIMEOUT_S))
        if late and timeout_s >= _CLOSE_TIMEOUT_S:
            self._health.report_failure("writing", StoreError(f"{self._store.describe}: no answer in time"))

    def save_soon(self, attachment: Attachment) -> None:
        """Write what a request leaves unfinished, even while its answer is still on its way."""
        if not self._health.is_broken:
            self._run(self._save(attachment.job))

    def freeze(self) -> None:
        """End all generation, also where requests wait: then all that there is can be saved."""
        for job in self._jobs.values():
            job.freeze()

    async def save_all(self) -> None:
        """Write what was generated until now. Where the store fails, the rest waits for the next time."""
        jobs = [job for job in self._jobs.values() if job.is_worth_saving or job.attachments]
        if not self._health.is_broken or await self._try_store(jobs):
            await asyncio.gather(*map(self._save, jobs))

    async def _try_store(self, jobs: list[Job]) -> bool:
        """Write until the store takes something; False if it takes nothing."""
        for job in jobs:
            if not await self._save(job):
                return await self._health.probe()  # the store may be well, and wrong with this job alone
            if not self._health.is_broken:
                return True
        if not await self._health.probe():
            return False
        self._health.report_success("writing")
        return True

    def is_saved(self, attachment: Attachment) -> bool:
        """Whether the store has all that was generated for the request, and outlives this container."""
        has_all = attachment.job.journal.has_all(with_random=attachment.has_random_seeds)
        return has_all and not self._ends_with_container

    async def write_beside(self, id: str, data: bytes) -> None:
        """Replace the object beside a job's journal that says how far the job is. Raises StoreError."""
        put = partial(self._store.put, f"jobs/{id}/progress.json", data)
        await asyncio.get_running_loop().run_in_executor(self._context.writers, put)

    async def _open(self, job: Job) -> None:
        """Open the job. Raises Conflict; if anything else fails, the job can begin."""
        try:
            await job.open()
        except DigestConflict:
            if self._jobs.get(job.id) is job:
                del self._jobs[job.id]
            raise _conflict() from None
        finally:
            self._retire_if_left(job)  # who asked for it may have left

    async def _save_forever(self) -> None:
        while True:
            if self._health.is_broken:
                await asyncio.sleep(min(_RETRY_INTERVAL_S, self._interval_s))
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_s):
                        await self._backlog.is_due.wait()
            self._backlog.is_due.clear()
            try:
                await self.save_all()
                for job in list(self._jobs.values()):
                    self._forget_if_done(job)
            except Exception:
                logger.exception("the journal was not written; it will be tried again")

    async def _save(self, job: Job) -> bool:
        """Write what is new of a job; False if the store failed."""
        try:
            written = await job.save()
        except StoreError as error:
            self._health.report_failure("writing", error)
            return False
        if written:
            self._metrics.journal_bytes.inc(written)
            self._health.report_success("writing")
        return True

    def _retire_if_left(self, job: Job) -> None:
        if not job.attachments and self._jobs.get(job.id) is job:
            self._run(self._retire(job))

    async def _retire(self, job: Job) -> None:
        if job.is_worth_saving and not self._health.is_broken:
            await self._save(job)
        self._forget_if_done(job)

    def _forget_if_done(self, job: Job) -> None:
        """Forget a job with which there is nothing left to do. Else a later turn comes to it."""
        is_due = job.is_worth_saving and job.journal.has_unsaved
        if not job.attachments and not is_due and job.opening.done() and self._jobs.get(job.id) is job:
            self._forget(job)

    def _forget(self, job: Job) -> None:
        del self._jobs[job.id]
        job.journal.forget_entries()
        if job.journal.outputs.table is not None:  # in a thread, as freeing a large file takes a while
            self._run(asyncio.to_thread(job.journal.outputs.table.close))

    async def _sweep_forever(self) -> None:
        context = self._context
        while True:
            work = partial(
                sweep,
                self._store,
                lifetime_s=context.lifetime_s,
                max_bytes=context.max_bytes,
                keep=set(self._jobs),
            )
            try:
                await asyncio.get_running_loop().run_in_executor(context.readers, work)
            except StoreError as error:
                self._health.report_failure("reading", error)
            except Exception:
                logger.exception("old journals were not deleted; it will be tried again")
            await asyncio.sleep(_SWEEP_INTERVAL_S)

    def _run(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _conflict() -> Conflict:
    message = "a job of this name has another request; send the same request again, or choose another name"
    return Conflict(message, param="job", code="job_conflict")
