"""Slows an engine down to a given rate, so that a fault comes in the middle of the work on any machine."""

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

_INTERVAL_S = 0.02


class Throttle:
    """Stops (SIGSTOP) and resumes a server's current engine to keep a rate, and records how its tokens grew.

    Used as a context manager: on leaving, the engine runs on. Tokens count from the start of the throttling.
    """

    def __init__(self, server: Server, *, per_s: float, max_tokens: float = float("inf")) -> None:
        """`max_tokens`: number of tokens at which the engine is held."""
        self._server = server
        self.per_s = per_s
        self.max_tokens = max_tokens
        self._before = server.metric(TOKENS)
        self._began = time.monotonic()
        self._times: list[float] = []
        self._counts: list[float] = []
        self._running: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Throttle:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._signal(is_to_stop=False)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._look()
            except httpx.TransportError:  # the server process has ended, or is about to
                self._over.wait(_INTERVAL_S)
            self._over.wait(_INTERVAL_S)

    def _look(self) -> None:
        count = self._server.metric(TOKENS) - self._before
        now = time.monotonic()
        self._counts.append(count)
        self._times.append(now)
        self._running.append(self._server.metric("longhaul_sequences_running"))
        self._signal(is_to_stop=count >= min(self.max_tokens, self.per_s * (now - self._began)))

    def _signal(self, *, is_to_stop: bool) -> None:
        with contextlib.suppress(psutil.Error):
            engine = self._server.engine if self._server.process.poll() is None else None
            if (engine is not None and engine.name() == "longhaul-engine") or (engine is not None and not is_to_stop):
                engine.suspend() if is_to_stop else engine.resume()

    # Measurements

    @property
    def tokens(self) -> int:
        """Return the number of tokens at the last look."""
        return int(self._counts[-1]) if self._counts else 0

    @property
    def in_flight(self) -> int:
        """Return the number of tokens that an engine's death may cost at most."""
        return int(STEPS_IN_FLIGHT * max(self._running, default=0))

    def wait_for(self, tokens: float, within_s: float = 600.0) -> None:
        deadline = time.monotonic() + within_s
        while self.tokens < tokens:
            assert time.monotonic() < deadline, f"{self.tokens} of {tokens:.0f} tokens in {within_s:.0f} s"
            assert self._server.process.poll() is None, "the server process has ended"
            time.sleep(_INTERVAL_S / 2)

    def tokens_at_risk(self, interval_s: float) -> int:
        """Return the tokens generated in the last interval and while a checkpoint was written: what a kill may cost
        now."""
        if not self._times:
            return 0
        index = bisect.bisect_left(self._times, time.monotonic() - interval_s - WRITE_S)
        return int(self._counts[-1] - self._counts[max(0, index - 1)])
