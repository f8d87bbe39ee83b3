"""Progress records as objects beside the journal, each job's newest over the one before."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger("container.telemetry.progress")  # its level lets INFO pass in any case

Write = Callable[[str, bytes], Awaitable[None]]
"""Writes the object of a job, given by its id. May raise anything."""


class ProgressWriter:
    """Owns the writes: one at a time for each job, and of the records that came meanwhile only the last."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._pending: dict[str, bytes] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._has_warned = False

    def put(self, job_id: str, data: bytes) -> None:
        """Write the object soon."""
        self._pending[job_id] = data
        if job_id not in self._writing:
            self._writing[job_id] = asyncio.create_task(self._write_all(job_id), name="progress object")

    async def stop(self, timeout_s: float) -> None:
        """Wait for the writes under way, and cancel those that take longer than `timeout_s`."""
        if tasks := list(self._writing.values()):
            await asyncio.wait(tasks, timeout=timeout_s)
            for task in tasks:
                task.cancel()

    async def _write_all(self, job_id: str) -> None:
        try:
            while (data := self._pending.pop(job_id, None)) is not None:
                try:
                    await self._write(job_id, data)
                except Exception as error:
                    if not self._has_warned:
                        message = "progress can't be written beside the journal (later failures are not logged): %s: %s"
                        extra = {"action": "progress_not_written"}
                        logger.warning(message, type(error).__name__, error, extra=extra)
                    self._has_warned = True
        finally:
            del self._writing[job_id]
