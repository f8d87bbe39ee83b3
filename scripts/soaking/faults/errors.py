"""What a run finds: something wrong, or no way to look."""

from __future__ import annotations


class Wrong(Exception):
    """The server did what it must not. The message has numbers and no texts."""


class CannotRun(Exception):
    """This machine can't do what the run needs. Neither right nor wrong."""


def expect(is_right: bool, reason: str) -> None:
    """Raises Wrong with the reason."""
    if not is_right:
        raise Wrong(reason)
