"""The state of the server process, as far as connections, exchanges and the app need it."""

from __future__ import annotations

from typing import Literal

from container.errors import Unavailable
from container.invocations.service import Service
from container.settings import Settings
from container.telemetry.metrics import Metrics

Status = Literal["starting", "ready", "recovering", "draining", "failed"]

DRAIN_CLIENT_TIMEOUT_S = 5.0
"""Client timeout while draining, if shorter than LONGHAUL_CLIENT_TIMEOUT_S."""
WORKING: tuple[Status, ...] = ("ready", "recovering")
"""Statuses in which requests are taken."""
_REASONS: dict[Status, str] = {
    "starting": "the model is being loaded",
    "recovering": "the engine died and is being started again",
    "draining": "the server is shutting down",
}


class ServerState:
    """Owns what `/ping` says. Server and backend change it; the others only read."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.status: Status = "starting"
        self.failure: str | None = None
        self.service: Service | None = None
        """The present service: none until the engine is ready, and another one each time that it is ready again."""
        self.client_timeout_s = settings.client_timeout_s
        """Seconds that a client may keep us waiting for its next byte, or for taking ours."""

    @property
    def reason(self) -> str | None:
        """Why the status is not `ready`."""
        return self.failure or _REASONS.get(self.status)

    def unavailable(self) -> Unavailable:
        """Return the error of a request that comes while none is taken."""
        code = "shutting_down" if self.status == "draining" else self.status
        return Unavailable(f"the server is {self.status}; try again when /ping answers 200", code=code)

    def use(self, service: Service) -> None:
        """Give new requests a service whose engine is ready."""
        self.service = service
        self._change("ready")

    def recover(self) -> None:
        """Let requests wait for the next engine, if there was one before."""
        if self.service is not None:
            self._change("recovering")

    def drain(self) -> None:
        """Take no more requests."""
        self._change("draining")
        self.client_timeout_s = min(self.client_timeout_s, DRAIN_CLIENT_TIMEOUT_S)

    def fail(self, reason: str) -> None:
        """Take no more requests, for a reason that can't be put right."""
        self.failure = reason
        self._change("failed")

    def _change(self, status: Status) -> None:
        """Change the status, if the one before isn't final."""
        if self.status != "failed" and (self.status != "draining" or status == "failed"):
            self.status = status
        self.metrics.ready.set(self.status in WORKING)
