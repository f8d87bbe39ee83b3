"""The service: what every invocation works with once the model is ready."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from container.core import DeadlineReason
from container.engine.messages import EngineInfo
from container.jobs.generator import Generator
from container.jobs.registry import JobRegistry
from container.reader.client import Readers
from container.telemetry.metrics import Metrics
from container.telemetry.progress import Progress
from container.tokenization.preparer import Preparer


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Shared by all invocations, and changed by none of them. Each start of the engine makes a new one."""

    preparer: Preparer
    readers: Readers
    info: EngineInfo
    generator: Generator
    jobs: JobRegistry
    progress: Progress | None
    """Reports on invocations, if the settings ask for it."""
    metrics: Metrics
    workers: ThreadPoolExecutor
    """Threads that parse and tokenize, so that the event loop never waits for a large document."""
    writers: ThreadPoolExecutor
    """Threads that write answers: at a deadline there is no time to wait behind documents that are read."""
    name: str
    """Name of the served model."""
    identity: str
    """Digest of what decides, beside the request, which tokens are generated."""
    deadline_reason: DeadlineReason = "deadline"
    """Reason that answers give for a text that the deadline cut, where the request doesn't say."""
