"""Application Auto Scaling in one gateway: its operations and its scaler, wired over one database."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from endpoint.alarms.firing import Firing, FiringResult
from endpoint.autoscaling.calendar import open_calendar
from endpoint.autoscaling.operations import Autoscaling
from endpoint.autoscaling.recording import Recorder
from endpoint.autoscaling.scaler import Scaler
from endpoint.autoscaling.schedule_runner import ScheduleRunner
from endpoint.autoscaling.store import Store
from endpoint.autoscaling.tracking_alarms import Alarms
from endpoint.autoscaling.variants import Call, Variants
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog
from endpoint.state.database import Database

_LOG = logging.getLogger(__name__)

_RETRY_INTERVAL_S = 10.0


class Scaling:
    """Outlives nothing: what must is in the database. There is one of it per database."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        catalog: Catalog,
        call_sagemaker: Call,
        alarms: Alarms,
        *,
        count_ended_busy: Callable[[str], int] = lambda _: 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`alarms` are CloudWatch's; `count_ended_busy` is as in `Variants`, `clock` the wall clock."""
        store = Store(database)
        variants = Variants(catalog, call_sagemaker, count_ended_busy)
        schedules = ScheduleRunner(store, variants, lambda: open_calendar(store, settings.time_scale, clock()))
        record = Recorder(Path(settings.record_scaling)).record if settings.record_scaling else None
        self.scaler = Scaler(settings, store, variants, schedules, clock=clock, record=record)
        self.operations = Autoscaling(settings, store, alarms, variants.exists, self.scaler.wake, clock)
        catalog.subscribe(self.scaler.wake)

    async def run(self) -> None:
        """Finish what a killed gateway left half done, then scale until cancelled. Never raises."""
        while True:
            try:
                await self.operations.resume()
                break
            except Exception:
                _LOG.exception("What an earlier gateway left half done could not be finished")
                await asyncio.sleep(_RETRY_INTERVAL_S)
        await self.scaler.run()

    async def act(self, firings: Sequence[Firing]) -> list[FiringResult]:
        """Run the policies of all alarms that fire at once."""
        return await self.scaler.act(firings)
