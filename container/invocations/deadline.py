"""A deadline: when the caller of an invocation gives up, and how long before that we stop to write the answer.

SageMaker tells a container no timeout: it is the request's `timeout=` among the custom attributes, else the setting.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from container.errors import DeadlineExceeded
from container.settings import Settings

Source = Literal["attribute", "setting"]
OnDeadline = Literal["partial", "error"]

MARGIN_S = 1.0
MARGIN_S_PER_MIB = 0.05
"""Seconds for a MiB of body or answer: what is left of a body is still read, and the answer goes over the wire."""
MARGIN_S_PER_ITEM = 0.0001
"""Seconds for each item, whose text is to be decoded or whose error is to be written."""
MAX_MARGIN_SHARE = 0.5
"""Largest share of the timeout that the margin takes."""
_SOURCE_NAMES: dict[Source, str] = {"attribute": "timeout=", "setting": "LONGHAUL_INVOCATION_TIMEOUT_S"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """`arrived` is when the request's first byte came, by `time.monotonic`."""

    arrived: float
    timeout_s: float
    source: Source
    on_deadline: OnDeadline = "partial"

    @classmethod
    def of(cls, settings: Settings, timeout_s: float | None, arrived: float) -> Deadline:
        """Return the deadline of a request, whose own `timeout_s` comes before the setting."""
        return cls(
            arrived=arrived,
            timeout_s=settings.invocation_timeout_s if timeout_s is None else timeout_s,
            source="setting" if timeout_s is None else "attribute",
            on_deadline=settings.on_deadline,
        )

    def __str__(self) -> str:
        return f"{self.timeout_s:g} s by {_SOURCE_NAMES[self.source]}"

    def left_s(self, *, size: int = 0, items: int = 0) -> float:
        """Return the seconds until work must end, so that `size` bytes of body and answer and `items` are in time."""
        margin_s = MARGIN_S + MARGIN_S_PER_MIB * size / (1 << 20) + MARGIN_S_PER_ITEM * items
        margin_s = min(margin_s, MAX_MARGIN_SHARE * self.timeout_s)
        return self.arrived + self.timeout_s - margin_s - time.monotonic()

    def exceeded(self) -> DeadlineExceeded:
        """Return the error of a request that the deadline leaves without an answer."""
        what = "before the first token" if self.on_deadline == "partial" else "before the end"
        return DeadlineExceeded(f"the deadline ({self}) came {what}")
