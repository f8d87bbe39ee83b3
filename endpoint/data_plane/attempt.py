"""One leased job: its input from S3 into a container, and what comes back. Decides nothing: it says what to decide."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Protocol

from endpoint.data_plane.container_client import Answer, BadAnswer, Body, ContainerClient, NoAnswer, Timeout, forwarded
from endpoint.data_plane.delivery import Counts
from endpoint.data_plane.outcomes import answered, failure, log_line
from endpoint.data_plane.storage import InputUnreadable, Source
from endpoint.fleet.instance import Instance
from endpoint.settings import Settings
from endpoint.state.queue import Job, Kind, Outcome

REDELIVERIES = 3
"""Of a job that got no answer, where Settings.on_no_answer wants them. Other leases (a killed gateway's) count, too."""
_MOST_QUOTED_BYTES = 1024
"""Of a container's error in the data log."""

_LOG = logging.getLogger(__name__)


class Redeliver(Exception):
    """The job got no answer, and shall be given to an instance again."""


class Opens(Protocol):
    async def open(self, location: str) -> Source: ...


class DataLog(Protocol):
    def write(self, endpoint: str, variant: str, instance_id: str, inference_id: str, text: str) -> None: ...


class Attempt:
    def __init__(
        self,
        settings: Settings,
        storage: Opens,
        invoker: ContainerClient,
        metrics: Counts,
        data_log: DataLog,
        answers: Path,
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._invoker = invoker
        self._metrics = metrics
        self._data_log = data_log
        self._answers = answers

    async def do(self, job: Job, instance: Instance) -> Outcome:
        """Raises Redeliver."""
        if job.fence == 1 and job.leased_at is not None:
            self._count(job, "TimeInBacklog", (job.leased_at - job.accepted_at) * 1e3)
        try:
            answer = await self._ask(job, instance)
            outcome = answered(job, answer)
            if not outcome.succeeded:
                self._log(job, instance, outcome.kind, await asyncio.to_thread(_head, answer.file), answer.status)
            return outcome
        except InputUnreadable as error:
            return self._failed(job, instance, "input", str(error))
        except Timeout as error:
            return self._failed(job, instance, "timeout", str(error))
        except BadAnswer as error:
            return self._failed(job, instance, "bad_answer", str(error))
        except NoAnswer as error:
            outcome = self._failed(job, instance, "no_answer", str(error))
            if self._settings.on_no_answer == "redeliver" and job.fence <= REDELIVERIES:
                raise Redeliver from error
            return outcome
        except OSError as error:
            _LOG.error("An answer can't be kept in %s: %s", self._answers, error)
            return self._failed(job, instance, "upload", f"it can't be kept on the disk ({error.strerror})")
        except Exception as error:
            _LOG.exception("%s could not be given to its container", job.inference_id)
            return self._failed(job, instance, "no_answer", f"the local endpoint failed: {type(error).__name__}")

    async def _ask(self, job: Job, instance: Instance) -> Answer:
        if job.body is not None:
            return await self._invoke(job, instance, job.body, job.content_type)
        assert job.input_location is not None
        source = await self._storage.open(job.input_location)
        try:
            return await self._invoke(job, instance, source, job.content_type or source.content_type)
        finally:
            await source.close()
            self._count(job, "RequestDownloadLatency", source.seconds * 1e6)

    async def _invoke(self, job: Job, instance: Instance, body: bytes | Body, content_type: str | None) -> Answer:
        inference_id = job.inference_id if self._settings.forward_inference_id else None
        headers = forwarded(content_type, job.accept, job.custom_attributes, inference_id)
        spool = self._answers / f"{job.id}-{job.fence}"
        answer = await self._invoker.invoke(instance.url, headers, body, job.timeout_s, spool)
        self._count(job, "ModelLatency", answer.seconds * 1e6)
        return answer

    def _failed(self, job: Job, instance: Instance, kind: Kind, detail: str) -> Outcome:
        self._log(job, instance, kind, detail)
        return failure(job, kind, detail)

    def _log(self, job: Job, instance: Instance, kind: Kind, detail: str, status: int = 0) -> None:
        _LOG.info("%s of %s failed: %s", job.inference_id, job.endpoint, kind)
        self._data_log.write(
            job.endpoint, job.variant, instance.id, job.inference_id, log_line(job, kind, detail, status)
        )

    def _count(self, job: Job, name: str, value: float) -> None:
        self._metrics.count(job.endpoint, job.variant, name, value)


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST_QUOTED_BYTES).decode(errors="replace")
