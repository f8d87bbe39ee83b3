"""The platform's own lines about invocations: CloudWatch Logs' stream <variant>/<instance>/data-log.

Writing never waits. Lines that can't be sent are kept in memory, and the oldest of too many are dropped: nothing of
this log survives a kill.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from endpoint.backend.clients import Clients
from endpoint.backoff import Backoff
from endpoint.cloudwatch.batches import batches
from endpoint.cloudwatch.log_events import (
    EVENT_BYTES,
    MAX_BYTES,
    MAX_EVENTS,
    MAX_LINE_BYTES,
    MAX_SPAN_MS,
    put_log_events,
)
from endpoint.cloudwatch.sender import Sender

_MAX_WAITING_BYTES = 8 << 20
_COLLECT_S = 0.3
"""Pause before lines are sent, so that those that come together are sent together."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    endpoint: str
    stream: str
    at_ms: int
    text: str
    size: int
    """Bytes, as PutLogEvents counts them."""


class DataLog:
    """Owns the lines until they are sent."""

    def __init__(self, backend: Clients, max_waiting_bytes: int = _MAX_WAITING_BYTES) -> None:
        self._backend = backend
        self._max_waiting_bytes = max_waiting_bytes
        self._lines: deque[Line] = deque()
        self._size = 0
        self._dropped = 0
        self._sender = Sender("CloudWatch Logs")
        self._woken = asyncio.Event()
        self._send_lock = asyncio.Lock()

    def write(self, endpoint: str, variant: str, instance_id: str, inference_id: str, text: str) -> None:
        """Add a line and return at once. `text` is cut where an event can't hold it."""
        now = time.time()
        at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        encoded = f"{at}:[sagemaker logs] [{inference_id}] {text}".replace("\0", "").encode(errors="replace")
        encoded = encoded[:MAX_LINE_BYTES]
        line = Line(
            endpoint=endpoint,
            stream=f"{variant}/{instance_id}/data-log",
            at_ms=int(now * 1000),
            text=encoded.decode(errors="ignore"),
            size=len(encoded) + EVENT_BYTES,
        )
        self._lines.append(line)
        self._size += line.size
        self._drop_oldest()
        self._woken.set()

    async def run(self) -> None:
        """Send lines until cancelled, and once more then. Never raises."""
        backoff = Backoff()
        try:
            while True:
                await self._woken.wait()
                await asyncio.sleep(_COLLECT_S)
                self._woken.clear()
                # What is being sent when this is cancelled is sent to its end.
                if await asyncio.shield(asyncio.create_task(self.send_all())):
                    backoff.reset()
                else:
                    await asyncio.sleep(backoff.next_s())
                    self._woken.set()
        finally:
            if not self._sender.is_failing:
                await self.send_all()

    async def send_all(self) -> bool:
        """Make one attempt at all lines; return False if some wait for a backend that is down."""
        async with self._send_lock:
            lines, self._lines, self._size = self._lines, deque(), 0
            streams: dict[tuple[str, str, int], list[Line]] = {}
            for line in sorted(lines, key=lambda line: line.at_ms):
                # Lines of one interval of this length can be in one batch.
                streams.setdefault((line.endpoint, line.stream, line.at_ms // MAX_SPAN_MS), []).append(line)
            unsent: list[Line] = []
            for stream in streams.values():
                for batch in batches(stream, size=lambda line: line.size, max_items=MAX_EVENTS, max_size=MAX_BYTES):
                    if unsent or not await self._send(batch):
                        unsent += batch
            if unsent:  # more lines may have come meanwhile
                self._lines = deque(sorted([*unsent, *self._lines], key=lambda line: line.at_ms))
                self._size = sum(line.size for line in self._lines)
                self._drop_oldest()
            elif self._dropped:
                _LOG.warning("Dropped the oldest %d lines of the data log, which could not be sent", self._dropped)
                self._dropped = 0
            return not unsent

    async def _send(self, batch: list[Line]) -> bool:
        events = [{"timestamp": line.at_ms, "message": line.text} for line in batch]
        call = partial(put_log_events, self._backend, batch[0].endpoint, batch[0].stream, events)
        return await self._sender.send(call, f"{len(batch)} lines of the data log")

    def _drop_oldest(self) -> None:
        while self._size > self._max_waiting_bytes:
            self._size -= self._lines.popleft().size
            self._dropped += 1
