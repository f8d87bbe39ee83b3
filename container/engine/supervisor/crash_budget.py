"""How often engines may die before the server gives up, so that the platform replaces it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashBudget:
    """Deaths within a time that the server tolerates.

    An engine that generated before it died has cost a pause. One that generated nothing may never do so: of those the
    server tolerates few.
    """

    crashes: int = 3
    """Deaths of engines that generated nothing."""
    in_all: int = 12
    within_s: float = 600.0
    first_delay_s: float = 0.25
    """Seconds before the next start, doubled for each further engine that generated nothing."""


@dataclass(frozen=True, slots=True)
class _Death:
    at_s: float
    has_generated: bool


class Crashes:
    """Owns the deaths that count against the budget.

    A death that a single sequence has caused, one that was isolated, clears the account: it explains the earlier ones,
    too. But an engine that dies of every sequence would have each sequence explain a death. So from one explained
    death to the next some engine must have generated something, or else it counts like any other.
    """

    def __init__(self, budget: CrashBudget, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget = budget
        self._clock = clock
        self._deaths: deque[_Death] = deque()
        self._may_be_explained = True

    def count(self, *, has_generated: bool, is_explained: bool) -> None:
        """Count the death of an engine, which had or had not generated something."""
        now = self._clock()
        while self._deaths and self._deaths[0].at_s < now - self._budget.within_s:
            self._deaths.popleft()
        self._may_be_explained |= has_generated
        if is_explained and self._may_be_explained:
            self._deaths.clear()
            self._may_be_explained = False
        else:
            self._deaths.append(_Death(now, has_generated))

    @property
    def spent(self) -> str | None:
        """Why the server must give up; None while the budget lasts."""
        died = f"the engine died {len(self._deaths)} times in {self._budget.within_s:.0f} s"
        if self._fruitless > self._budget.crashes:
            return f"{died}, {self._fruitless} times before it had generated anything"
        return died if len(self._deaths) > self._budget.in_all else None

    @property
    def delay_s(self) -> float:
        """Seconds to wait before the next start."""
        return float(self._budget.first_delay_s * 2 ** max(0, self._fruitless - 1))

    @property
    def _fruitless(self) -> int:
        return sum(not death.has_generated for death in self._deaths)
