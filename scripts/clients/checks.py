"""Checks of the programs: a line for each thing that is as it should be; the first that is not ends the program."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

E = TypeVar("E", bound=Exception)


def check(what: str, holds: object, shown: object = "") -> None:
    """Say that `what` is as it should be, or end the program, with what was `shown` instead."""
    if not holds:
        sys.exit(f"WRONG {what}: {shown}")
    print(f"ok    {what}", flush=True)


def error_of(call: Callable[[], object], kind: type[E]) -> E:
    """Return the error that the client raises, or end the program if it raises none of that kind."""
    try:
        answer = call()
    except kind as error:
        return error
    except Exception as error:
        sys.exit(f"WRONG {kind.__name__} expected: {type(error).__name__}: {error}")
    sys.exit(f"WRONG {kind.__name__} expected: {answer!r}")
