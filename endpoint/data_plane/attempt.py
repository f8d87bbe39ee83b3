"""One leased job in one instance: its input from S3 into the container, and what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from endpoint.cloudwatch.data_log import DataLog
from endpoint.cloudwatch.metrics import Metrics
from endpoint.data_plane.container_client import (
    Answer,
    BadAnswer,
    Body,
    ContainerClient,
    NoAnswer,
    Timeout,
    request_headers,
)
from endpoint.data_plane.outcomes import answer_outcome, failure, log_line
from endpoint.data_plane.storage import InputUnreadable, Storage
from endpoint.fleet.instance import Instance
from endpoint.settings import Settings
from endpoint.state.queue import Job, Outcome, OutcomeKind

MAX_REDELIVERIES = 3
"""Redeliveries of a job without an answer, where Settings.on_no_answer wants them. A killed gateway's leases count."""
_UNAVAILABLE = 503
"""Status with which a container gives up, as it ends, what it has no time for."""
_MAX_QUOTED_BYTES = 1024
"""Bytes of a container's error that the data log quotes."""

_KINDS: dict[type[Exception], OutcomeKind] = {
    InputUnreadable: "input",
    Timeout: "timeout",
    BadAnswer: "bad_answer",
    NoAnswer: "no_answer",
}

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Gives a job to an instance. Decides nothing: the outcome that it returns is `Delivery`'s to write down."""

    settings: Settings
    storage: Storage
    containers: ContainerClient
    metrics: Metrics
    data_log: DataLog
    answers: Path
    """Directory in which the answer is spooled."""
    serves: Callable[[Instance], bool]
    """Function that tells whether an instance is still one that is given work."""
    job: Job
    instance: Instance

    async def run(self) -> Outcome | None:
        """Return how the job ends, or None if it shall be given to an instance again.

        That is so, where the settings want it, if it got no answer, and if an instance that ends gave it up with 503.
        """
        job = self.job
        if job.fence == 1 and job.leased_at is not None:
            self._count("TimeInBacklog", (job.leased_at - job.accepted_at) * 1e3)
        try:
            answer = await self._invoke()
            if answer.status == _UNAVAILABLE and self._may_redeliver and not self.serves(self.instance):
                answer.file.unlink(missing_ok=True)
                return None
            outcome = answer_outcome(job, answer)
            if not outcome.succeeded:
                self._log(outcome.kind, await asyncio.to_thread(answer.head, _MAX_QUOTED_BYTES), answer.status)
            return outcome
        except (InputUnreadable, Timeout, BadAnswer, NoAnswer) as error:
            kind = _KINDS[type(error)]
            outcome = self._failure(kind, str(error))
            return None if kind == "no_answer" and self._may_redeliver else outcome
        except OSError as error:
            _LOG.error("An answer can't be kept in %s: %s", self.answers, error)
            return self._failure("upload", f"it can't be kept on the disk ({error.strerror})")
        except Exception as error:
            _LOG.exception("%s could not be given to its container", job.inference_id)
            return self._failure("no_answer", f"the local endpoint failed: {type(error).__name__}")

    @property
    def _may_redeliver(self) -> bool:
        return self.settings.on_no_answer == "redeliver" and self.job.fence <= MAX_REDELIVERIES

    async def _invoke(self) -> Answer:
        job = self.job
        if job.input_location is None:
            return await self._send(job.body or b"", job.content_type)
        source = await self.storage.open(job.input_location)
        try:
            return await self._send(source, job.content_type or source.content_type, source.content_encoding)
        finally:
            await source.close()
            self._count("RequestDownloadLatency", source.seconds * 1e6)

    async def _send(self, body: bytes | Body, content_type: str | None, content_encoding: str | None = None) -> Answer:
        job = self.job
        inference_id = job.inference_id if self.settings.forward_inference_id else None
        headers = request_headers(content_type, job.accept, job.custom_attributes, inference_id, content_encoding)
        spool = self.answers / f"{job.id}-{job.fence}"
        answer = await self.containers.invoke(self.instance.url, headers, body, job.timeout_s, spool)
        self._count("ModelLatency", answer.seconds * 1e6)
        return answer

    def _failure(self, kind: OutcomeKind, detail: str) -> Outcome:
        self._log(kind, detail)
        return failure(self.job, kind, detail)

    def _log(self, kind: OutcomeKind, detail: str, status: int = 0) -> None:
        job = self.job
        _LOG.info("%s of %s failed: %s", job.inference_id, job.endpoint, kind)
        line = log_line(job, kind, detail, status)
        self.data_log.write(job.endpoint, job.variant, self.instance.id, job.inference_id, line)

    def _count(self, name: str, value: float) -> None:
        self.metrics.count(self.job.endpoint, self.job.variant, name, value)
