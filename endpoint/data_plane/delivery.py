"""The end of a job: decided once, then brought to S3 and into the outbox as often as it takes, the same each time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace

from endpoint.backoff import Backoff
from endpoint.cloudwatch.data_log import DataLog
from endpoint.cloudwatch.metrics import Metrics
from endpoint.data_plane.notifications import MAX_INCLUDED_BYTES, Notifications
from endpoint.data_plane.outcomes import FAILURES, failure
from endpoint.data_plane.storage import Storage, UploadFailed
from endpoint.settings import Settings
from endpoint.state.outbox import Notification
from endpoint.state.queue import Job, Outcome, Queue

_MIN_PAUSE_S, _MAX_PAUSE_S = 0.5, 30.0
"""Seconds of the platform's clock between two attempts at an upload."""

_LOG = logging.getLogger(__name__)


class Delivery:
    """Owns the directory `answers`, and removes what is delivered from it."""

    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        storage: Storage,
        notifications: Notifications,
        metrics: Metrics,
        data_log: DataLog,
    ) -> None:
        self.answers = settings.data_dir / "answers"
        self.undelivered = 0
        """Number of jobs that are decided by `end` and not delivered yet."""
        self._settings = settings
        self._queue = queue
        self._storage = storage
        self._notifications = notifications
        self._metrics = metrics
        self._data_log = data_log

    async def recover(self) -> list[tuple[Job, Outcome]]:
        """Return what an earlier gateway decided and did not deliver, and remove the files of undecided answers."""
        self.answers.mkdir(parents=True, exist_ok=True)
        decided = await self._queue.recover()
        kept = {outcome.file for _, outcome in decided}
        for path in self.answers.iterdir():
            if path.name not in kept:
                with contextlib.suppress(OSError):
                    path.unlink()
        return decided

    async def end(self, job: Job, outcome: Outcome, instance_id: str | None = None) -> None:
        """Decide how a leased job ends, and deliver that. Does nothing if another gateway holds the job now."""
        if not await self._queue.decide(job, outcome):
            _LOG.warning("%s is held by another gateway", job.inference_id)
            self._remove_file(outcome)
            return
        self.undelivered += 1
        try:
            await self.deliver(replace(job, body=None), outcome, instance_id)
        finally:
            self.undelivered -= 1

    async def deliver(self, job: Job, outcome: Outcome, instance_id: str | None = None) -> None:
        """Write a decided job's object, and end the job. Raises nothing.

        An output that can't be written makes the job a failure, which the data log of `instance_id` tells.
        """
        delivered = await self._write(job, outcome)
        if delivered != outcome and instance_id is not None:
            reason = delivered.reason or delivered.kind
            self._data_log.write(job.endpoint, job.variant, instance_id, job.inference_id, reason)
        await self._queue.finish(job, await self._notification(job, delivered))
        self._remove_file(outcome)
        self._notifications.wake()
        failed = None if delivered.succeeded else FAILURES[delivered.kind]
        if failed is None or failed.was_processed:
            self._count(job, "InvocationsProcessed")
            self._count(job, "TotalProcessingTime", (time.time() - job.accepted_at) * 1e3)
        if failed is not None:
            self._count(job, "InvocationFailures")
            if failed.metric is not None:
                self._count(job, failed.metric)

    async def _write(self, job: Job, outcome: Outcome) -> Outcome:
        """Write the output or the failure object; return the outcome that it tells."""
        if outcome.succeeded:
            try:
                await self._upload(job, job.output_location, outcome)
                return outcome
            except UploadFailed as error:
                self._count(job, "ResponseUploadFailures")
                outcome = failure(job, "upload", str(error))
                await self._queue.redecide(job, outcome)
        if job.failure_location is not None:
            try:
                await self._upload(job, job.failure_location, outcome)
            except UploadFailed as error:
                _LOG.error("The failure object of %s could not be written: %s", job.inference_id, error)
                if outcome.kind != "upload":
                    self._count(job, "ResponseUploadFailures")
        return outcome

    async def _upload(self, job: Job, location: str, outcome: Outcome) -> None:
        """Write an object, for as long as it takes. Raises UploadFailed if S3 refuses it for good."""
        begin = time.monotonic()
        backoff = Backoff(self._settings.real_s(_MIN_PAUSE_S), self._settings.real_s(_MAX_PAUSE_S))
        source = (outcome.text or "").encode() if outcome.file is None else self.answers / outcome.file
        while True:
            try:
                await self._storage.put(location, source, outcome.content_type, job.output_options.get("KmsKeyId"))
                break
            except UploadFailed as error:
                if not error.may_pass:
                    raise
                pause_s = backoff.next_s()
                _LOG.warning("%s can't be written yet; next attempt in %g s: %s", location, pause_s, error)
                await asyncio.sleep(pause_s)
        self._count(job, "ResponseUploadLatency", (time.monotonic() - begin) * 1e6)

    async def _notification(self, job: Job, outcome: Outcome) -> Notification | None:
        def read_object() -> bytes | None:
            if outcome.file is None:
                return (outcome.text or "").encode()
            path = self.answers / outcome.file
            return path.read_bytes() if path.stat().st_size <= MAX_INCLUDED_BYTES else None

        try:
            is_wanted = self._notifications.wants_answer(job, outcome)
            return self._notifications.make(job, outcome, await asyncio.to_thread(read_object) if is_wanted else None)
        except Exception:
            _LOG.exception("The notification of %s could not be made", job.inference_id)
            return None

    def _remove_file(self, outcome: Outcome) -> None:
        if outcome.file is not None:
            (self.answers / outcome.file).unlink(missing_ok=True)

    def _count(self, job: Job, name: str, value: float = 1.0) -> None:
        self._metrics.count(job.endpoint, job.variant, name, value)
