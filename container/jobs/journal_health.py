"""The health of the journal's store: it may fail, and generation goes on."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from functools import partial
from typing import Literal

from container.journal.stores.store import Store, StoreError
from container.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_TIMEOUT_S = 15.0
_BROKEN_TIMEOUT_S = 1.0
"""Seconds for the store's next answer when a job is opened, the second one while it fails. The first is longer than one
hung connection to S3 takes. Then the job begins anew, rather than wait for ever; what the store has of it stays."""

Operation = Literal["reading", "writing"]


class JournalHealth:
    """Knows whether the store works, by the last call of either kind that failed, and says so in log and metrics."""

    def __init__(self, store: Store, metrics: Metrics, writers: Executor) -> None:
        self.is_broken = False
        self.timeout_s = _TIMEOUT_S
        """Seconds that a request waits for the store's next answer."""
        self._store = store
        self._metrics = metrics
        self._writers = writers
        self._broken_by: Operation | None = None

    def report_failure(self, by: Operation, error: Exception) -> None:
        self._metrics.journal_errors.inc()
        if not self.is_broken:
            message = "the journal can't be used, work goes on without it: %s"
            logger.warning(message, error, extra={"action": "journal_broken"})
        if self._broken_by != "writing":
            self._broken_by = by
        self.is_broken, self.timeout_s = True, _BROKEN_TIMEOUT_S
        self._metrics.journal_broken.set(1)

    def report_success(self, by: Operation) -> None:
        """Believe the store again, if this kind of call had failed: a store that can be written to can be read."""
        if self.is_broken and by in (self._broken_by, "writing"):
            self._broken_by = None
            self.is_broken, self.timeout_s = False, _TIMEOUT_S
            self._metrics.journal_broken.set(0)
            logger.warning("the journal can be used again", extra={"action": "journal_healed"})

    async def probe(self) -> bool:
        """Try to write an object that belongs to no job; False if that fails."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._writers, partial(self._store.put, "probe", b""))
        except StoreError as error:
            self.report_failure("writing", error)
            return False
        return True
