"""The platform's calendar, by which schedules run: the wall clock, sped up by the time scale.

It begins with the wall clock's time (its anchor) when a data directory is first used with a time scale, and runs faster
from there. At scale 1 it is the wall clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from endpoint.autoscaling.schedules import next_run
from endpoint.autoscaling.store import Store


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


async def open_calendar(store: Store, scale: float, wall: float) -> Calendar:
    """Return the calendar of a data directory, or begin one at a time of the wall clock if the scale is another.

    In a new calendar, actions are due after its anchor; an `at` that ran in an old one doesn't run again.
    """
    if (kept := await store.anchor()) is None or kept[1] != scale:
        actions = [
            replace(each, next_run_at=next_run(each.schedule, each.timezone, each.start_at, each.end_at, wall))
            for each in await store.actions()
            if each.next_run_at is not None or not each.schedule.startswith("at(")
        ]
        kept = await store.set_anchor(wall, scale, actions)
    return Calendar(anchor=kept[0], scale=kept[1])
