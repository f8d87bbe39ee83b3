"""A stall: how long a client has kept its connection waiting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["new", "head", "body", "whole"]
"""How much of the coming request is here: nothing, a part of its head, its head, all of it."""
Missing = Literal["head", "body", "answer"]
"""Something that a client keeps the server waiting for: its request's head, its body, or that it takes its answer."""


@dataclass(slots=True)
class Stall:
    """Counts the time in looks, one every `interval_s`, so that a server that was late itself blames no client."""

    interval_s: float
    timeout_s: float
    waited_s: float = 0.0
    has_received: bool = False
    """True if bytes have come since the last look."""
    has_sent: bool = False
    """True if the client has taken bytes since the last look."""
    unsent_bytes: int = 0
    """Bytes of the answer that the client had not taken at the last look."""

    def look(self, phase: Phase, *, is_answering: bool, unsent_bytes: int, timeout_s: float) -> Missing | None:
        """Count one more interval; return what the client owes, once that has taken `timeout_s`.

        The client has not taken `unsent_bytes` of its answer. Another `timeout_s` than before begins anew.
        """
        missing: Missing | None = None
        if phase == "head" and not is_answering and not unsent_bytes:
            missing = "head"
        elif unsent_bytes > 0 and not self.has_sent and unsent_bytes >= self.unsent_bytes:
            missing = "answer"
        elif phase == "body" and not is_answering and not self.has_received:
            missing = "body"
        self.unsent_bytes, self.has_received, self.has_sent = unsent_bytes, False, False
        if timeout_s != self.timeout_s:
            self.timeout_s, self.waited_s = timeout_s, 0.0
        self.waited_s = 0.0 if missing is None else self.waited_s + self.interval_s
        return missing if self.waited_s >= timeout_s else None
