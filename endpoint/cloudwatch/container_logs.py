"""What containers print: to CloudWatch Logs under SageMaker's names, and to the terminal.

Each line is sent at least once: what a killed gateway had sent but not yet written down is sent again. A log file is
emptied from its beginning (a hole in the file) as its lines are sent, so that the container can go on appending to it;
where the file system can't do that (Linux's can), it grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from endpoint.backend.clients import Clients
from endpoint.cloudwatch.log_events import EVENT_BYTES, MOST_BYTES, MOST_EVENTS, MOST_LINE, put_log_events
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

_LOOK_EVERY_S = 0.3
_READ = 1 << 20
_PATIENCE_S = 600.0
"""For a backend that doesn't take the last lines of an ended container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    instance: str
    endpoint: str
    stream: str
    path: Path
    sent: int
    ended: bool


class ContainerLogs:
    """Owns the log files, from `follow` on, and the directories that they are in, which are removed after the end."""

    def __init__(
        self, database: Database, backend: Clients, most_bytes: int, echo: Callable[[str], None] | None = None
    ) -> None:
        """`echo` gets each line, behind its endpoint and instance."""
        self.echo = echo
        self._database = database
        self._backend = backend
        self._most_bytes = most_bytes
        self._logs: dict[str, Log] = {}
        self._shown: dict[str, int] = {}
        self._failing_since: dict[str, float] = {}
        self._one_round = asyncio.Lock()

    async def load(self, living: Iterable[str]) -> None:
        """What an earlier gateway followed; of instances that don't live any more, the rest."""
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
        """Nothing will be added to its file."""

        def change(db: sqlite3.Connection) -> None:
            db.execute("UPDATE container_logs SET ended = 1 WHERE instance = ?", (instance,))

        await self._database.write(change)
        if log := self._logs.get(instance):
            self._logs[instance] = replace(log, ended=True)

    async def run(self) -> None:
        """Until cancelled; never raises."""
        while True:
            try:
                await self.send_all()
            except Exception:
                _LOG.exception("The containers' logs could not be read")
            await asyncio.sleep(_LOOK_EVERY_S)

    async def send_all(self) -> None:
        """One round: what all files hold now."""
        async with self._one_round:
            for log in list(self._logs.values()):
                await self._send(log)

    async def _send(self, log: Log) -> None:
        while (found := await asyncio.to_thread(_read_lines, log.path, log.sent, log.ended)).end > log.sent:
            self._show(log, found)
            try:
                await asyncio.to_thread(self._put, log, found.texts)
            except (BotoCoreError, ClientError) as error:
                await self._not_sent(log, error)
                return
            self._failing_since.pop(log.instance, None)
            log = await self._advance(log, found.end)
        if log.ended:
            await self._forget(log)

    def _show(self, log: Log, found: _Lines) -> None:
        shown = self._shown.get(log.instance, 0)
        if found.end > shown:
            for end, text in found.lines:
                if end > shown and self.echo is not None:
                    self.echo(f"[{log.endpoint} {log.instance}] {text}")
            self._shown[log.instance] = found.end

    def _put(self, log: Log, texts: list[str]) -> None:
        for batch in batches(texts, round(time.time() * 1000)):
            put_log_events(self._backend, log.endpoint, log.stream, batch)

    async def _not_sent(self, log: Log, error: Exception) -> None:
        if log.instance not in self._failing_since:
            _LOG.warning("CloudWatch Logs does not take what %s prints: %s", log.instance, error)
        since = self._failing_since.setdefault(log.instance, time.monotonic())
        size = log.path.stat().st_size
        if size - log.sent > self._most_bytes:
            _LOG.warning("Dropped %d bytes of %s's log that were not sent", size - self._most_bytes, log.instance)
            await self._advance(log, size - self._most_bytes)
        if log.ended and time.monotonic() - since > _PATIENCE_S:
            _LOG.warning("Gave up sending the last lines of %s", log.instance)
            await self._forget(log)

    async def _advance(self, log: Log, sent: int) -> Log:
        await self._database.write(
            lambda db: db.execute("UPDATE container_logs SET sent = ? WHERE instance = ?", (sent, log.instance))
        )
        log = replace(self._logs[log.instance], sent=sent)
        self._logs[log.instance] = log
        await asyncio.to_thread(_punch, log.path, sent)
        return log

    async def _forget(self, log: Log) -> None:
        await asyncio.to_thread(shutil.rmtree, log.path.parent, True)
        await self._database.write(
            lambda db: db.execute("DELETE FROM container_logs WHERE instance = ?", (log.instance,))
        )
        for known in (self._logs, self._shown, self._failing_since):
            known.pop(log.instance, None)


def batches(texts: Iterable[str], timestamp_ms: int) -> Iterable[list[dict[str, Any]]]:
    """Events within PutLogEvents' limits. It refuses empty messages, so empty lines are left out."""
    batch: list[dict[str, Any]] = []
    size = 0
    for text in texts:
        cost = len(text.encode()) + EVENT_BYTES
        if batch and (len(batch) == MOST_EVENTS or size + cost > MOST_BYTES):
            yield batch
            batch, size = [], 0
        if text:
            batch.append({"timestamp": timestamp_ms, "message": text})
            size += cost
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Lines:
    lines: list[tuple[int, str]]
    """Each with the offset of its end in the file."""
    end: int

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.lines]


def _read_lines(path: Path, start: int, to_the_end: bool) -> _Lines:
    """Whole lines, and pieces of those that no event could hold. `to_the_end`: an unfinished last line as well."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(_READ)
    except FileNotFoundError:
        return _Lines([], start)
    lines: list[tuple[int, str]] = []
    begin = 0
    while begin < len(data):
        end = data.find(b"\n", begin, begin + MOST_LINE) + 1
        if end == 0:
            end = min(begin + MOST_LINE // 3, len(data))  # invalid bytes become three each
            if len(data) - begin < MOST_LINE and not to_the_end:
                break
        text = data[begin:end].decode(errors="replace").rstrip("\r\n").replace("\0", "")
        lines.append((start + end, text))
        begin = end
    return _Lines(lines, start + begin)


def _punch(path: Path, length: int) -> None:
    """Gives the disk back what is before `length`, while others append."""
    length -= length % 4096
    fallocate = getattr(ctypes.CDLL(None), "fallocate", None)
    if length == 0 or fallocate is None:
        return
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR)
        try:
            keep_size_and_punch_hole = 0x1 | 0x2
            fallocate(descriptor, keep_size_and_punch_hole, ctypes.c_int64(0), ctypes.c_int64(length))
        finally:
            os.close(descriptor)
