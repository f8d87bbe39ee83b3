"""Runs `python -m container` as usual, and records which functions of it are called, in all threads.

Started as a program of its own, with the checkout in PYTHONPATH: `recorder.py LINK ROOT`. LINK is the file descriptor
of a socket. To the line `start` it answers with a line `ok`, to `stop` with what it has recorded since, as one line of
JSON. The checkout knows nothing of it. Timings under a recorder mean nothing.
"""

from __future__ import annotations

import json
import runpy
import socket
import sys
import threading
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, Literal, NamedTuple, cast

PACKAGE = "container"
WRITES = frozenset({"write", "writelines", "send", "sendall", "sendmsg"})

Kind = Literal["call", "return", "write", "log"]
"""A call of one of the package's functions (a resumed coroutine is called again) or its return (a suspended one
returns); a call from the package into a library that writes to a file or socket, or into `logging`."""


class Event(NamedTuple):
    """One event, in the order of time over all threads. Files are paths below the checkout."""

    thread: int
    kind: Kind
    file: str
    function: str
    line: int
    caller: str
    """File of the nearest frame of the package further up. It is empty if there is none but those that were on the
    stack when recording began: they run the event loop."""
    marks: list[str]
    """A call's marks: "submit" (an argument is a Submit), "submit_by_name" (the function is called so), "last_tokens"
    (an argument is a message with a sequence's last tokens). A log's marks: its action and its message."""


class Recorder:
    """Owns the events. Profile functions of all threads append to them."""

    def __init__(self, root: str) -> None:
        self._prefix = f"{root}/"
        self._folder = f"{root}/{PACKAGE}/"
        self._files: dict[CodeType, str] = {}
        """The path of each code object below the checkout; "" for those of other files."""
        self._is_recording = False
        self._below: set[FrameType] = set()
        """Frames on the stacks of all threads when recording began."""
        self.events: list[Event] = []

    def start(self) -> None:
        """Forgets what it has and records from now on. The event loop should be idle."""
        self.events = []
        self._below = {frame for top in sys._current_frames().values() for frame in _stack(top)}
        self._is_recording = True

    def stop(self) -> list[Event]:
        """Stops recording. Returns the events, the oldest first."""
        self._is_recording = False
        self._below = set()
        return self.events

    def profile(self, frame: FrameType, kind: str, argument: Any) -> None:
        """Takes one event from the interpreter: what `sys.setprofile` wants."""
        if not self._is_recording:
            return
        file = self._file(frame.f_code)
        if kind == "c_call":
            if file and argument.__name__ in WRITES:
                self._add(frame, "write", file, [])
        elif file and kind in ("call", "return"):
            self._add(frame, cast(Kind, kind), file, _marks(frame) if kind == "call" else [])
        elif kind == "call" and frame.f_back is not None and (caller := self._file(frame.f_back.f_code)):
            self._called_outside(frame, frame.f_back, caller)

    def _called_outside(self, frame: FrameType, caller: FrameType, file: str) -> None:
        """Notes a call from the package into a library, if it writes or logs."""
        if frame.f_code.co_name in WRITES:
            self._add(caller, "write", file, [])
        elif frame.f_code.co_filename.endswith("/logging/__init__.py"):
            extra = frame.f_locals.get("kwargs", {}).get("extra") or {}
            self._add(caller, "log", file, [str(extra.get("action")), str(frame.f_locals.get("msg"))])

    def _add(self, frame: FrameType, kind: Kind, file: str, marks: list[str]) -> None:
        name = frame.f_code.co_qualname
        event = Event(threading.get_ident(), kind, file, name, frame.f_lineno, self._caller(frame), marks)
        self.events.append(event)

    def _caller(self, frame: FrameType) -> str:
        for caller in _stack(frame.f_back):
            if caller in self._below:
                return ""
            if file := self._file(caller.f_code):
                return file
        return ""

    def _file(self, code: CodeType) -> str:
        file = self._files.get(code)
        if file is None:
            path = code.co_filename
            file = self._files[code] = path.removeprefix(self._prefix) if path.startswith(self._folder) else ""
        return file


def _stack(top: FrameType | None) -> Iterator[FrameType]:
    """Yields the frame and those that called it."""
    while top is not None:
        yield top
        top = top.f_back


def _marks(frame: FrameType) -> list[str]:
    """Marks a call by its arguments. A coroutine that resumes is marked again."""
    code = frame.f_code
    values = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
    marks = []
    if any(type(value).__name__ == "Submit" for value in values):
        marks.append("submit")
    elif code.co_name == "submit":
        marks.append("submit_by_name")
    if any(_has_last_tokens(value) for value in values):
        marks.append("last_tokens")
    return marks


def _has_last_tokens(value: object) -> bool:
    """Tells whether a message of the engine has a `finish_reason`, or has `tokens` of which one has."""
    kind = type(value)
    if not kind.__module__.startswith(f"{PACKAGE}.engine") or not kind.__module__.endswith("messages"):
        return False
    parts = [value, *(getattr(value, "tokens", None) or [])]
    return any(getattr(part, "finish_reason", None) is not None for part in parts)


def _serve(link: socket.socket, recorder: Recorder) -> None:
    with link, link.makefile("rw") as lines:
        for line in lines:
            if line.strip() == "start":
                recorder.start()
                lines.write("ok\n")
            else:
                lines.write(json.dumps(recorder.stop()) + "\n")
            lines.flush()


def main() -> None:
    """Runs the package's `__main__` in this process, with every thread but the link's under the recorder."""
    link, root = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    recorder = Recorder(root)
    threading.Thread(target=_serve, args=(link, recorder), daemon=True).start()
    sys.argv = [PACKAGE]
    threading.setprofile(recorder.profile)
    sys.setprofile(recorder.profile)
    runpy.run_module(PACKAGE, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
