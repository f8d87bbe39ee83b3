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
        self.service: Service | None = None
        """The present service: none until the engine is ready, and another one each time that it is ready again."""
        self.is_engine_ready = False
        self.is_draining = False
        self.failure: str | None = None
        self.client_timeout_s = settings.client_timeout_s
        """Seconds that a client may keep us waiting for its next byte, or for taking ours."""

    @property
    def status(self) -> Status:
        if self.failure is not None:
            return "failed"
        if self.is_draining:
            return "draining"
        if self.service is None:
            return "starting"
        return "ready" if self.is_engine_ready else "recovering"

    @property
    def reason(self) -> str | None:
        """Why the status is not `ready`."""
        return self.failure or _REASONS.get(self.status)

    @property
    def takes_work(self) -> bool:
        return self.status in ("ready", "recovering")

    def service_or_unavailable(self) -> Service:
        """Return what a new request works with. Raises Unavailable."""
        if self.service is None or not self.takes_work:
            status = self.status
            code = "shutting_down" if status == "draining" else status
            raise Unavailable(f"the server is {status}; try again when /ping answers 200", code=code)
        return self.service

    def drain(self) -> None:
        """Take no more work."""
        self.is_draining = True
        self.client_timeout_s = min(self.client_timeout_s, DRAIN_CLIENT_TIMEOUT_S)
