"""What the platform itself says about invocations: CloudWatch Logs' stream <variant>/<instance>/data-log.

It is told without waiting. What can't be sent waits in memory, and the oldest of too much is dropped: nothing of this
log survives a kill.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from botocore.exceptions import BotoCoreError, ClientError

from endpoint.backend.clients import Clients, is_refusal
from endpoint.cloudwatch.log_events import EVENT_BYTES, MOST_BYTES, MOST_EVENTS, MOST_LINE, MOST_MS, put_log_events
from endpoint.settings import Settings

_MOST_WAITING = 8 << 20
_COLLECT_S = 0.3
"""For lines that come together to be sent together."""
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 30.0

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    endpoint: str
    stream: str
    at_ms: int
    text: str
    size: int
    """As PutLogEvents counts it."""


class DataLog:
    """Owns the lines until they are sent."""

    def __init__(self, settings: Settings, backend: Clients, most_waiting: int = _MOST_WAITING) -> None:
        self._backend = backend
        self._most_waiting = most_waiting
        self._lines: deque[Line] = deque()
        self._size = 0
        self._dropped = 0
        self._is_failing = False
        self._woken = asyncio.Event()
        self._one_round = asyncio.Lock()

    def write(self, endpoint: str, variant: str, instance_id: str, inference_id: str, text: str) -> None:
        """Returns at once. `text` is cut where an event can't hold it."""
        now = time.time()
        at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        encoded = f"{at}:[sagemaker logs] [{inference_id}] {text}".replace("\0", "").encode(errors="replace")
        encoded = encoded[:MOST_LINE]
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
        """Until cancelled, when it makes a last attempt; never raises."""
        retry_s = _FIRST_RETRY_S
        try:
            while True:
                await self._woken.wait()
                await asyncio.sleep(_COLLECT_S)
                self._woken.clear()
                # What is being sent when it is cancelled is sent to its end.
                if await asyncio.shield(asyncio.create_task(self._send())):
                    retry_s = _FIRST_RETRY_S
                else:
                    await asyncio.sleep(retry_s)
                    retry_s = min(2 * retry_s, _LAST_RETRY_S)
                    self._woken.set()
        finally:
            if not self._is_failing:
                await self._send()

    async def flush(self) -> None:
        """One attempt."""
        await self._send()

    async def _send(self) -> bool:
        """Whether nothing waits for a backend that is down."""
        async with self._one_round:
            lines, self._lines, self._size = self._lines, deque(), 0
            batches = list(_batches(lines))
            for position, batch in enumerate(batches):
                if not await self._put(batch):
                    self._give_back(itertools.chain(*batches[position:]))
                    return False
            self._tell_dropped()
            return True

    async def _put(self, batch: list[Line]) -> bool:
        """Whether it is over with: taken, or refused for good."""
        events = [{"timestamp": line.at_ms, "message": line.text} for line in batch]
        try:
            await asyncio.to_thread(put_log_events, self._backend, batch[0].endpoint, batch[0].stream, events)
        except Exception as error:
            if is_refusal(error):
                _LOG.warning("CloudWatch Logs refuses %d lines of the data log: %s", len(batch), error)
                return True
            if not self._is_failing:
                is_known = isinstance(error, BotoCoreError | ClientError)
                _LOG.warning("CloudWatch Logs does not take the data log: %s", error, exc_info=not is_known)
            self._is_failing = True
            return False
        self._is_failing = False
        return True

    def _give_back(self, lines: Iterable[Line]) -> None:
        """To their places: more may have come meanwhile."""
        self._lines = deque(sorted([*lines, *self._lines], key=lambda line: line.at_ms))
        self._size = sum(line.size for line in self._lines)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        while self._size > self._most_waiting:
            self._size -= self._lines.popleft().size
            self._dropped += 1

    def _tell_dropped(self) -> None:
        if self._dropped:
            _LOG.warning("Dropped the oldest %d lines of the data log, which could not be sent", self._dropped)
            self._dropped = 0


def _batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Of one stream each, in the order of time, within PutLogEvents' limits."""
    streams: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        streams.setdefault((line.endpoint, line.stream), []).append(line)
    for stream in streams.values():
        batch: list[Line] = []
        size = 0
        for line in sorted(stream, key=lambda line: line.at_ms):
            is_full = len(batch) == MOST_EVENTS or size + line.size > MOST_BYTES
            if batch and (is_full or line.at_ms - batch[0].at_ms > MOST_MS):
                yield batch
                batch, size = [], 0
            batch.append(line)
            size += line.size
        yield batch
