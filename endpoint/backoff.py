"""The pauses between attempts at what another may not take at the moment."""

from __future__ import annotations


class Backoff:
    """Pauses that double from `first_s` to `max_s`, until an attempt succeeds."""

    def __init__(self, first_s: float = 0.5, max_s: float = 30.0) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._pause_s = first_s

    @property
    def is_first(self) -> bool:
        """Whether the next pause is the first since the last success."""
        return self._pause_s == self._first_s

    def next_s(self) -> float:
        """Return the seconds to wait now, after a failure; the next call returns twice as many."""
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, self._max_s)
        return pause_s

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._pause_s = self._first_s
