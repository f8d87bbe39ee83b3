"""An engine that works no faster than it is let, so that a fault comes in the midst of work on any machine."""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from types import TracebackType

import httpx
import psutil

from testing.server import Server

from .testbed import STEPS_IN_FLIGHT, TOKENS, WRITE_S

_EVERY_S = 0.02


class Pace:
    """Owns the stops (SIGSTOP) of a server's engine, whichever it is, and remembers how its tokens grew.

    Left (`with`), it lets the engine go. Tokens count from the beginning of the pace.
    """

    def __init__(self, server: Server, *, per_s: float, most: float = float("inf")) -> None:
        """`most`: there it is held."""
        self._server = server
        self.per_s = per_s
        self.most = most
        self._before = server.metric(TOKENS)
        self._began = time.monotonic()
        self._times: list[float] = []
        self._counts: list[float] = []
        self._running: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Pace:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._signal(is_to_stop=False)

    def _keep(self) -> None:
        while not self._over.is_set():
            try:
                self._look()
            except httpx.TransportError:  # the edge has ended, or is about to
                self._over.wait(_EVERY_S)
            self._over.wait(_EVERY_S)

    def _look(self) -> None:
        count = self._server.metric(TOKENS) - self._before
        now = time.monotonic()
        self._counts.append(count)
        self._times.append(now)
        self._running.append(self._server.metric("longhaul_sequences_running"))
        self._signal(is_to_stop=count >= min(self.most, self.per_s * (now - self._began)))

    def _signal(self, *, is_to_stop: bool) -> None:
        with contextlib.suppress(psutil.Error):
            engine = self._server.engine if self._server.process.poll() is None else None
            if (engine is not None and engine.name() == "longhaul-engine") or (engine is not None and not is_to_stop):
                engine.suspend() if is_to_stop else engine.resume()

    # What was seen

    @property
    def tokens(self) -> int:
        """At the last look."""
        return int(self._counts[-1]) if self._counts else 0

    @property
    def in_flight(self) -> int:
        """What an engine's death may cost at most."""
        return int(STEPS_IN_FLIGHT * max(self._running, default=0))

    def wait_for(self, tokens: float, within_s: float = 600.0) -> None:
        deadline = time.monotonic() + within_s
        while self.tokens < tokens:
            assert time.monotonic() < deadline, f"{self.tokens} of {tokens:.0f} tokens in {within_s:.0f} s"
            assert self._server.process.poll() is None, "the edge has ended"
            time.sleep(_EVERY_S / 2)

    def worth(self, interval_s: float) -> int:
        """What was generated in the last interval and while a checkpoint was written: what a kill now may cost."""
        if not self._times:
            return 0
        place = bisect.bisect_left(self._times, time.monotonic() - interval_s - WRITE_S)
        return int(self._counts[-1] - self._counts[max(0, place - 1)])
