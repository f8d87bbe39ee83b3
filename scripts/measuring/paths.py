"""The way of a request through the files, made from the recorded events.

Path 1 goes from the request's first frame to the first write of its Submit to the engine. Path 1b goes from the
resumed frame that reads the engine's last tokens to the log line "invocation ended". What the server still does after
that line (until it is quiet) is a third path, so that work put off is not overlooked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .recorder import Event

TO_ENGINE = "1   request -> first message to the engine"
TO_ANSWER = "1b  last token -> answer sent, exchange over"
AFTERWARDS = "(after the log line, until the server is quiet)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One position on the way: a file, and the event that brought control there."""

    file: str
    what: str


@dataclass(frozen=True, slots=True)
class Way:
    """The positions between two moments, in the order of time over all threads."""

    steps: tuple[Step, ...]

    @property
    def files(self) -> list[str]:
        """The distinct files, in the order of their first visit."""
        return list(dict.fromkeys(step.file for step in self.steps))

    @property
    def hops(self) -> list[tuple[str, str]]:
        """The moves between consecutive positions in different files. A call and its return are two.

        Where control goes back to the event loop, the next position is the function that the loop calls then.
        """
        stays = [step.file for step in self.steps]
        return [(old, new) for old, new in itertools.pairwise(stays) if old != new]

    @property
    def moves(self) -> int:
        return len(self.hops)

    @property
    def distinct_moves(self) -> int:
        """The moves, with each pair of files counted once; there and back are two."""
        return len(set(self.hops))

    @property
    def returns(self) -> int:
        """The moves to a file that was visited before."""
        return self.moves - len(self.files) + 1 if self.steps else 0

    @property
    def calls(self) -> int:
        """The functions entered; a resumed coroutine counts as one."""
        return sum(step.what.startswith("call ") for step in self.steps)


class NotFound(Exception):
    """The events have no such moment; the message says which."""


def split(events: Sequence[Event]) -> dict[str, Way]:
    """Cuts the three paths out of one request's events. Raises NotFound."""
    first = _first(events, 0, lambda event: event.kind == "call", "call")
    written = _submit_written(events)
    arrival = _first(events, written, lambda event: "last_tokens" in event.marks, "call with the last tokens")
    ended = _first(events, arrival, _is_end, "log line 'invocation ended'")
    return {
        TO_ENGINE: Way(tuple(_steps(events[first : written + 1]))),
        TO_ANSWER: Way(tuple(_steps(events[_outermost(events, arrival) : ended + 1]))),
        AFTERWARDS: Way(tuple(_steps(events[ended + 1 :]))),
    }


def _submit_written(events: Sequence[Event]) -> int:
    """Finds the first write, in the same thread, after a function was given the Submit.

    In a tree that gives it to no function of its own, a function named `submit` stands for it. A write by native code
    that the interpreter doesn't report has happened when the function that was given the Submit returns.
    """
    at = _first_marked(events, "submit")
    if at is None:
        at = _first_marked(events, "submit_by_name")
    if at is None:
        raise NotFound("no Submit, and no function named submit")
    thread = events[at].thread
    depth = 0
    for index in range(at, len(events)):
        event = events[index]
        if event.thread != thread:
            continue
        depth += {"call": 1, "return": -1}.get(event.kind, 0)
        if event.kind == "write" or depth == 0:
            return index
    raise NotFound("no write of the Submit")


def _first_marked(events: Sequence[Event], mark: str) -> int | None:
    return next((index for index, event in enumerate(events) if mark in event.marks), None)


def _is_end(event: Event) -> bool:
    return event.kind == "log" and ("invocation_end" in event.marks or "invocation ended" in event.marks)


def _outermost(events: Sequence[Event], at: int) -> int:
    """Finds where the event loop gave control to the package on the way to the call `at`, in the same thread."""
    start, returned = at, 0
    for index in range(at, -1, -1):
        event = events[index]
        if event.thread != events[at].thread:
            continue
        if event.kind == "return":
            if not event.caller and not returned:
                break  # the end of what the loop did before
            returned += 1
        elif event.kind == "call" and returned:
            returned -= 1
        elif event.kind == "call":
            start = index
            if not event.caller:
                break
    return start


def _first(events: Sequence[Event], start: int, matches: Callable[[Event], bool], name: str) -> int:
    for index in range(start, len(events)):
        if matches(events[index]):
            return index
    raise NotFound(f"no {name}")


def _steps(events: Sequence[Event]) -> Iterator[Step]:
    """Yields where control is after each event. A return leads to the caller, unless that is the event loop."""
    threads: dict[int, int] = {}
    for event in events:
        thread = threads.setdefault(event.thread, len(threads) + 1)
        what = f"{event.kind} {event.file}:{event.function}, line {event.line}, thread {thread}"
        yield Step(file=event.file, what=what)
        if event.kind == "return" and event.caller:
            yield Step(file=event.caller, what=f"back in {event.caller}")


def least(ways: Sequence[Way]) -> Way:
    """Picks the way with the fewest moves: the others met a timer or a heartbeat."""
    return min(ways, key=lambda way: (way.moves, len(way.files), len(way.steps)))
