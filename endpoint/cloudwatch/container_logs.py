"""The output of containers: to CloudWatch Logs under SageMaker's names, and to the terminal.

Each line is sent at least once: what a killed gateway had sent but not yet written down is sent again. A log file is
emptied from its beginning (a hole in the file) as its lines are sent. It can't be rotated, because the container holds
it open and outlives the gateway, and truncating it would lose what is appended just then. Where the file system can't
make holes (Linux's can), the file grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from endpoint.backend.clients import Clients
from endpoint.cloudwatch.batches import batches
from endpoint.cloudwatch.log_events import EVENT_BYTES, MAX_BYTES, MAX_EVENTS, MAX_LINE_BYTES, put_log_events
from endpoint.state.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS container_logs (
    instance TEXT PRIMARY KEY, endpoint TEXT NOT NULL, stream TEXT NOT NULL,
    path TEXT NOT NULL,
    sent INTEGER NOT NULL,      -- bytes of the file that are in CloudWatch Logs
    ended INTEGER NOT NULL      -- whether nothing will be added
);
"""

_LOG = logging.getLogger(__name__)

_READ_INTERVAL_S = 0.3
_READ_BYTES = 1 << 20
_LAST_LINES_TIMEOUT_S = 600.0
"""Seconds that the last lines of an ended container wait for a backend that doesn't take them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    instance: str
    endpoint: str
    stream: str
    path: Path
    sent: int
    ended: bool


class ContainerLogs:
    """Owns the log files, from `follow` on, and their directories, which are removed when the last line is sent."""

    def __init__(
        self, database: Database, backend: Clients, max_bytes: int, echo: Callable[[str], None] | None = None
    ) -> None:
        """`max_bytes` of a log are kept while it can't be sent; `echo` gets each line, behind the instance's name."""
        self._echo = echo
        self._database = database
        self._backend = backend
        self._max_bytes = max_bytes
        self._logs: dict[str, Log] = {}
        self._shown: dict[str, int] = {}
        self._failing_since: dict[str, float] = {}
        self._send_lock = asyncio.Lock()

    async def load(self, living: Iterable[str]) -> None:
        """Go on with the logs that an earlier gateway followed. Those of instances not in `living` have ended."""
        rows = await self._database.read(lambda db: db.execute("SELECT * FROM container_logs").fetchall())
        alive = set(living)
        for row in rows:
            log = Log(**{**dict(row), "path": Path(row["path"]), "ended": row["instance"] not in alive})
            self._logs[log.instance] = log
            self._shown[log.instance] = log.sent

    async def follow(self, instance: str, endpoint: str, variant: str, path: Path) -> None:
        stream = f"{variant}/{instance}"
        log = Log(instance=instance, endpoint=endpoint, stream=stream, path=path, sent=0, ended=False)
        await self._database.write(
            lambda db: db.execute(
                "INSERT INTO container_logs VALUES (?, ?, ?, ?, 0, 0)", (instance, endpoint, stream, str(path))
            )
        )
        self._logs[instance] = log

    async def end(self, instance: str) -> None:
        """Say that nothing will be added to the instance's log."""
        await self._database.write(
            lambda db: db.execute("UPDATE container_logs SET ended = 1 WHERE instance = ?", (instance,))
        )
        if log := self._logs.get(instance):
            self._logs[instance] = replace(log, ended=True)

    async def run(self) -> None:
        """Send what containers print, until cancelled. Never raises."""
        while True:
            try:
                await self.send_all()
            except Exception:
                _LOG.exception("The containers' logs could not be read")
            await asyncio.sleep(_READ_INTERVAL_S)

    async def send_all(self) -> None:
        """Make one attempt at all that the files hold now."""
        async with self._send_lock:
            for log in list(self._logs.values()):
                await self._send(log)

    async def _send(self, log: Log) -> None:
        while (lines := await asyncio.to_thread(_read_lines, log.path, log.sent, log.ended)).end > log.sent:
            shown = self._shown.get(log.instance, 0)
            for end, text in lines.texts:
                if end > shown and self._echo is not None:
                    self._echo(f"[{log.endpoint} {log.instance}] {text}")
            self._shown[log.instance] = max(shown, lines.end)
            try:
                await asyncio.to_thread(self._put, log, lines)
            except (BotoCoreError, ClientError) as error:
                if log.instance not in self._failing_since:
                    _LOG.warning("CloudWatch Logs does not take what %s prints: %s", log.instance, error)
                since = self._failing_since.setdefault(log.instance, time.monotonic())
                begin = log.path.stat().st_size - self._max_bytes
                if begin > log.sent:
                    _LOG.warning("Dropped %d bytes of %s's log that were not sent", begin - log.sent, log.instance)
                    await self._advance(log, begin)
                if log.ended and time.monotonic() - since > _LAST_LINES_TIMEOUT_S:
                    _LOG.warning("Gave up sending the last lines of %s", log.instance)
                    await self._forget(log)
                return
            self._failing_since.pop(log.instance, None)
            log = await self._advance(log, lines.end)
        if log.ended:
            await self._forget(log)

    def _put(self, log: Log, lines: _Lines) -> None:
        now_ms = round(time.time() * 1000)
        texts = [text for _, text in lines.texts if text]  # PutLogEvents refuses empty messages
        for batch in batches(
            texts, size=lambda text: len(text.encode()) + EVENT_BYTES, max_items=MAX_EVENTS, max_size=MAX_BYTES
        ):
            events = [{"timestamp": now_ms, "message": text} for text in batch]
            put_log_events(self._backend, log.endpoint, log.stream, events)

    async def _advance(self, log: Log, sent: int) -> Log:
        await self._database.write(
            lambda db: db.execute("UPDATE container_logs SET sent = ? WHERE instance = ?", (sent, log.instance))
        )
        log = replace(self._logs[log.instance], sent=sent)
        self._logs[log.instance] = log
        await asyncio.to_thread(_punch_hole, log.path, sent)
        return log

    async def _forget(self, log: Log) -> None:
        await asyncio.to_thread(shutil.rmtree, log.path.parent, True)
        await self._database.write(
            lambda db: db.execute("DELETE FROM container_logs WHERE instance = ?", (log.instance,))
        )
        for known in (self._logs, self._shown, self._failing_since):
            known.pop(log.instance, None)


@dataclass(frozen=True, slots=True)
class _Lines:
    texts: list[tuple[int, str]]
    """The lines, each with the offset of its end in the file."""
    end: int


def _read_lines(path: Path, start: int, has_ended: bool) -> _Lines:
    """Read whole lines, and pieces of those that no event could hold; an unfinished last line only if `has_ended`."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(_READ_BYTES)
    except FileNotFoundError:
        return _Lines([], start)
    texts: list[tuple[int, str]] = []
    begin = 0
    while begin < len(data):
        end = data.find(b"\n", begin, begin + MAX_LINE_BYTES) + 1
        if end == 0:
            end = min(begin + MAX_LINE_BYTES // 3, len(data))  # invalid bytes become three each
            if len(data) - begin < MAX_LINE_BYTES and not has_ended:
                break
        text = data[begin:end].decode(errors="replace").rstrip("\r\n").replace("\0", "")
        texts.append((start + end, text))
        begin = end
    return _Lines(texts, start + begin)


def _punch_hole(path: Path, length: int) -> None:
    """Give the disk back what is before `length`, while others append.

    The time of the last change stays: it tells until when an engine's output has been written down.
    """
    length -= length % 4096
    fallocate = getattr(ctypes.CDLL(None), "fallocate", None)
    if length == 0 or fallocate is None:
        return
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR)
        try:
            before = os.fstat(descriptor)
            keep_size_and_punch_hole = 0x1 | 0x2
            fallocate(descriptor, keep_size_and_punch_hole, ctypes.c_int64(0), ctypes.c_int64(length))
            os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))
        finally:
            os.close(descriptor)
