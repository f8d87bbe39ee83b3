"""What was decided of a job, brought to S3 and into the outbox: as often as it takes, and the same each time."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from endpoint.data_plane.notifications import MOST_ANSWER_BYTES
from endpoint.data_plane.outcomes import failure
from endpoint.data_plane.storage import UploadFailed
from endpoint.settings import Settings
from endpoint.state.queue import Job, Notification, Outcome, Queue

T = TypeVar("T")

_FIRST_WAIT_S = 0.5
"""Of the platform's clock, between two attempts; doubled each time."""
_LONGEST_WAIT_S = 30.0
_DATABASE_WAIT_S = 1.0

Config = dict[str, Any]
"""Parameters of CreateEndpointConfig."""

_LOG = logging.getLogger(__name__)


class Writes(Protocol):
    async def put(
        self, location: str, source: Path | bytes, content_type: str | None, kms_key_id: str | None = None
    ) -> None: ...


class Notifications(Protocol):
    def wants_answer(self, outcome: Outcome, config: Config) -> bool: ...
    def of(self, job: Job, outcome: Outcome, config: Config, *, answer: bytes | None) -> Notification | None: ...
    def wake(self) -> None: ...


class Counts(Protocol):
    def count(self, endpoint: str, variant: str, name: str, value: float = 1.0) -> None: ...


class Delivery:
    """Owns the files of answers once they are decided, and removes them."""

    def __init__(
        self, settings: Settings, queue: Queue, storage: Writes, notices: Notifications, metrics: Counts, answers: Path
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._storage = storage
        self._notices = notices
        self._metrics = metrics
        self._answers = answers

    async def deliver(self, job: Job, outcome: Outcome) -> Outcome:
        """Ends a decided job, and says how: an output that can't be written makes it a failure. Raises nothing."""
        spool = None if outcome.file is None else self._answers / outcome.file
        outcome = await self._write(job, outcome, _kms_key(job.config))
        notice = await self._notice(job, outcome, job.config)
        await until_written(lambda: self._queue.finish(job, notice))
        if spool is not None:
            spool.unlink(missing_ok=True)
        self._notices.wake()
        self._count(job, outcome)
        return outcome

    async def _write(self, job: Job, outcome: Outcome, kms_key_id: str | None) -> Outcome:
        if outcome.succeeded:
            try:
                await self._upload(job, job.output_location, outcome, kms_key_id)
                return outcome
            except UploadFailed as error:
                self._metrics.count(job.endpoint, job.variant, "ResponseUploadFailures")
                outcome = failure(job, "upload", str(error))
                undelivered = outcome
                await until_written(lambda: self._queue.redecide(job, undelivered))
        if job.failure_location is not None:
            try:
                await self._upload(job, job.failure_location, outcome, kms_key_id)
            except UploadFailed as error:
                _LOG.error("The failure object of %s could not be written: %s", job.inference_id, error)
                if outcome.kind != "upload":
                    self._metrics.count(job.endpoint, job.variant, "ResponseUploadFailures")
        return outcome

    async def _upload(self, job: Job, location: str, outcome: Outcome, kms_key_id: str | None) -> None:
        """As long as it takes: a store that is down decides nothing. Raises UploadFailed where it refuses for good."""
        begin = time.monotonic()
        wait_s = self._settings.real_s(_FIRST_WAIT_S)
        source = (outcome.text or "").encode() if outcome.file is None else self._answers / outcome.file
        while True:
            try:
                await self._put(location, source, outcome.content_type, kms_key_id)
                break
            except UploadFailed as error:
                if not error.may_pass:
                    raise
                _LOG.warning("%s can't be written yet; next attempt in %g s: %s", location, wait_s, error)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, self._settings.real_s(_LONGEST_WAIT_S))
        micros = (time.monotonic() - begin) * 1e6
        self._metrics.count(job.endpoint, job.variant, "ResponseUploadLatency", micros)

    async def _put(self, location: str, source: Path | bytes, content_type: str | None, key: str | None) -> None:
        try:
            await self._storage.put(location, source, content_type, key)
        except UploadFailed:
            raise
        except Exception as error:
            _LOG.exception("An object could not be written")
            raise UploadFailed(type(error).__name__, may_pass=False) from error

    async def _notice(self, job: Job, outcome: Outcome, config: Config) -> Notification | None:
        try:
            answer = await self._answer(outcome) if self._notices.wants_answer(outcome, config) else None
            return self._notices.of(job, outcome, config, answer=answer)
        except Exception:
            _LOG.exception("There is no notice of %s", job.inference_id)
            return None

    async def _answer(self, outcome: Outcome) -> bytes | None:
        """None if it is too long for a notice."""
        if outcome.file is None:
            return (outcome.text or "").encode()
        path = self._answers / outcome.file
        if path.stat().st_size > MOST_ANSWER_BYTES:
            return None
        return await asyncio.to_thread(path.read_bytes)

    def _count(self, job: Job, outcome: Outcome) -> None:
        def count(name: str, value: float = 1.0) -> None:
            self._metrics.count(job.endpoint, job.variant, name, value)

        if outcome.kind not in ("expired", "deleted"):
            count("InvocationsProcessed")
            count("TotalProcessingTime", (time.time() - job.accepted_at) * 1e3)
        if not outcome.succeeded:
            count("InvocationFailures")
        if outcome.kind == "expired":
            count("ExpiredRequests")
        elif outcome.kind == "input":
            count("RequestDownloadFailures")
        elif outcome.kind == "client_error":
            count("Invocation4XXErrors")
        elif outcome.kind == "server_error":
            count("Invocation5XXErrors")


async def until_written(work: Callable[[], Awaitable[T]]) -> T:
    """Again while the database can't: a full disk, say, ends no request."""
    while True:
        try:
            return await work()
        except sqlite3.Error as error:
            _LOG.error("The database does not answer; next attempt in %g s: %s", _DATABASE_WAIT_S, error)
            await asyncio.sleep(_DATABASE_WAIT_S)


def _kms_key(config: Config) -> str | None:
    found: str | None = config["AsyncInferenceConfig"]["OutputConfig"].get("KmsKeyId")
    return found
