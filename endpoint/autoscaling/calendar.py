"""The platform's calendar, by which schedules run: the wall clock, sped up by the time scale.

It begins with the wall clock's time (its anchor) when a data directory is first used with a time scale, and runs faster
from there. At scale 1 it is the wall clock.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """Translates between the two clocks. Times are seconds since the epoch."""

    anchor: float = 0.0
    """Wall-clock time at which the two are equal."""
    scale: float = 1.0

    def time_at(self, wall: float) -> float:
        """Return the calendar's time at a time of the wall clock."""
        return wall if self.scale == 1 else self.anchor + (wall - self.anchor) * self.scale

    def wall_time_of(self, time: float) -> float:
        """Return the wall clock's time at a time of the calendar."""
        return time if self.scale == 1 else self.anchor + (time - self.anchor) / self.scale
