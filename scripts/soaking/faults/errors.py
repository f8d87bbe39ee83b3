"""The two ways in which a run can fail."""

from __future__ import annotations


class CheckFailed(Exception):
    """The server did something wrong. The message has numbers and no texts."""


class CannotRun(Exception):
    """This machine can't do what the run needs, which says nothing about the server."""


def expect(is_right: bool, reason: str) -> None:
    """Raise CheckFailed with the reason unless `is_right`."""
    if not is_right:
        raise CheckFailed(reason)
