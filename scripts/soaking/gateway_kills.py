"""SIGKILL for a gateway at given moments of the phases of some work, each time followed by the next gateway."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from testing.endpoint.endpoint_up import EndpointUp

Moment = float | None
"""Seconds for which gateways have run in a phase; None is when an endpoint has just begun to change."""

_CHANGE_SHARE = 0.25
_POLL_INTERVAL_S = 0.005


def draw_moments(draw: random.Random, durations: Mapping[str, float], count: int) -> dict[str, list[Moment]]:
    """Return moments by phases: half of them anywhere in the time of an undisturbed run, half anywhere in a phase."""
    moments: dict[str, list[Moment]] = {name: [] for name in durations}
    names = list(durations)
    for number in range(count):
        weights = list(durations.values()) if number % 2 else None
        [name] = draw.choices(names, weights)
        moments[name].append(None if draw.random() < _CHANGE_SHARE else draw.uniform(0, durations[name]))
    return moments


class GatewayKills:
    """Kills the gateway of `up` in the phases that `phase` begins. Moments of a phase that is over come at its end."""

    def __init__(
        self, up: EndpointUp, moments: Mapping[str, Sequence[Moment]], is_changing: Callable[[], bool]
    ) -> None:
        """`is_changing` tells whether an endpoint is being changed."""
        self.quiet = threading.Lock()
        """Lock that a caller holds while the gateway must not be killed."""
        self.done: list[str] = []
        """Phase and moment of each kill."""
        self.durations: dict[str, float] = {}
        """Seconds of each phase that is over."""
        self._up = up
        self._moments = moments
        self._is_changing = is_changing
        self._errors: list[BaseException] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Kill in a phase, which is over with the `with`; return when the last gateway answers."""
        over, started = threading.Event(), time.monotonic()
        thread = threading.Thread(target=self._kill, args=(name, over))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        self.durations[name] = time.monotonic() - started
        if self._errors:
            raise self._errors[0]

    def _kill(self, name: str, over: threading.Event) -> None:
        try:
            self._kill_in(name, over)
        except BaseException as error:
            self._errors.append(error)

    def _kill_in(self, name: str, over: threading.Event) -> None:
        since = time.monotonic()
        moments = self._moments.get(name, ())
        for moment in sorted(each for each in moments if each is not None):
            over.wait(max(since + moment - time.monotonic(), 0.0))
            since += self._kill_now(name, time.monotonic() - since)
        for _ in range(sum(moment is None for moment in moments)):
            while not over.is_set() and not self._is_changing():
                over.wait(_POLL_INTERVAL_S)
            self._kill_now(f"{name}, at a change", time.monotonic() - since)

    def _kill_now(self, what: str, at_s: float) -> float:
        """Kill the gateway and start the next; return the seconds that this took."""
        with self.quiet:
            started = time.monotonic()
            self._up.kill()
            self.done.append(f"{what} ({at_s:.2f} s)")
            self._up.start()
            return time.monotonic() - started
