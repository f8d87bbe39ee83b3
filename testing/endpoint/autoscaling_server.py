"""Application Auto Scaling alone behind a real socket, with real alarms and a clock that tests set."""

from __future__ import annotations

from collections.abc import Sequence

from endpoint.alarms import store as alarm_store
from endpoint.alarms.actions import Actions
from endpoint.alarms.alarms import Alarms
from endpoint.alarms.firing import Firing, FiringResult
from endpoint.alarms.store import AlarmStore
from endpoint.autoscaling import rows
from endpoint.autoscaling.operations import Autoscaling
from endpoint.autoscaling.store import Store
from endpoint.aws.service import Call
from endpoint.settings import Settings
from testing.endpoint.service_server import ServiceServer


class AutoscalingServer(ServiceServer):
    """Must be closed."""

    service = "application-autoscaling"
    schemas = (rows.SCHEMA, alarm_store.SCHEMA)

    async def start(self, settings: Settings) -> Call:
        self.now = 1_800_000_000.0
        """Wall-clock time, in seconds since the epoch: 2027-01-15 08:00 UTC."""
        self.variants = {("endpoint", "AllTraffic")}
        self.wakes = 0
        self.store = Store(self.database)
        self.alarm_store = AlarmStore(self.database)
        actions = Actions(self.alarm_store, self._act)
        alarms = Alarms(settings, self.alarm_store, actions, clock=lambda: self.now)
        self.autoscaling = Autoscaling(settings, self.store, alarms, self._exists, self._wake, clock=lambda: self.now)
        return self.autoscaling.call

    async def _act(self, firings: Sequence[Firing]) -> Sequence[FiringResult]:
        return [FiringResult() for _ in firings]

    async def _exists(self, endpoint: str, variant: str) -> bool:
        return (endpoint, variant) in self.variants

    def _wake(self) -> None:
        self.wakes += 1
