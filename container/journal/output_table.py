"""A table of a job's outputs, merged from its journal, in a file: a million finished ones take no memory."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from container.disk.full_disk import full_disk
from container.disk.scratch_table import open_scratch
from container.engine.sequence import TokenLogprobs
from container.journal.merged_output import MergedOutput, merge
from container.journal.segment import End, Entry, GenerationKey, Record

_OUTPUTS = (
    "CREATE TABLE outputs (slot, line, item, choice, prompt_crc, tokens, has_logprobs, end, stop_chars,"
    " PRIMARY KEY (slot, line, item, choice)) WITHOUT ROWID"
)
_PIECES = (
    "CREATE TABLE pieces (slot, line, item, choice, start, token_ids BLOB, logprobs BLOB,"
    " PRIMARY KEY (slot, line, item, choice, start)) WITHOUT ROWID"
)
_IS_OF_KEY = "slot = ? AND line = ? AND item = ? AND choice = ?"
_RECORDS_PER_TURN = 64
"""Records merged while a reader waits."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[TokenLogprobs]).decode


class Counts(NamedTuple):
    """Outputs that have ended and that have not, and the tokens of both."""

    finished: int
    unfinished: int
    tokens: int


class _Row(NamedTuple):
    """An output without its tokens, which are in `pieces`."""

    prompt_crc: int
    tokens: int
    has_logprobs: int
    end: End | None
    stop_chars: int | None

    def is_followed_by(self, record: Record) -> bool:
        """Whether the record goes on right behind the output: then it is added without reading what is there."""
        return (
            record.prompt_crc == self.prompt_crc
            and self.end is None
            and record.start == self.tokens
            and (not self.tokens or not record.tokens or bool(record.logprobs) == bool(self.has_logprobs))
        )


class OutputTable:
    """Owns the file, which is gone with the process. Any thread may use it, also while another one adds entries.

    Entries are added in the journal's order. All methods but `close` raise OutOfSpace once the disk was full: nothing
    in the file can be relied on any more.
    """

    def __init__(self, directory: str) -> None:
        self._next = threading.Lock()
        self._lock = threading.Lock()
        self._is_full = False
        self._directory = directory
        self._file: sqlite3.Connection | None = None  # made with the first record: most jobs have no past

    def close(self) -> None:
        with self._lock, contextlib.suppress(sqlite3.Error):
            if self._file is not None:
                self._file.close()

    def add(self, entries: Iterable[Entry]) -> None:
        """Merge records into the outputs. Other entries are ignored."""
        records = [entry for entry in entries if isinstance(entry, Record)]
        for first in range(0, len(records), _RECORDS_PER_TURN):
            with self._turn():
                if self._file is None:
                    self._file = open_scratch(self._directory, _OUTPUTS, _PIECES)
                for record in records[first : first + _RECORDS_PER_TURN]:
                    _add(self._file, record)

    def get(self, key: GenerationKey) -> MergedOutput | None:
        """Return what is known of an output."""
        if self._file is None:
            return None
        with self._turn():
            row = _row(self._file, key)
            return None if row is None else _output(self._file, key, row)

    def counts(self) -> Counts:
        if self._file is None:
            return Counts(0, 0, 0)
        with self._turn():
            question = "SELECT count(end), count(*) - count(end), total(tokens) FROM outputs"
            finished, unfinished, tokens = self._file.execute(question).fetchone()
        return Counts(finished, unfinished, int(tokens))

    def slots(self) -> set[int]:
        """Return the slots that have outputs."""
        if self._file is None:
            return set()
        with self._turn():
            return {slot for (slot,) in self._file.execute("SELECT DISTINCT slot FROM outputs")}

    def drop(self, slot: int) -> None:
        """Delete the outputs of a slot that is not used any more."""
        if self._file is None:
            return
        with self._turn():
            for table in ("pieces", "outputs"):
                self._file.execute(f"DELETE FROM {table} WHERE slot = ?", (slot,))

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        # Through two locks: one that is released and taken again at once, as by `add`, would starve all other threads.
        with self._next:
            self._lock.acquire()
        try:
            if self._is_full:
                raise full_disk()
            yield
        except sqlite3.Error as error:  # full, or broken: in either case it can't be relied on
            self._is_full = True
            raise full_disk() from error
        finally:
            self._lock.release()


def _add(file: sqlite3.Connection, record: Record) -> None:
    row = _row(file, record.key)
    if row is not None and row.is_followed_by(record):
        has_logprobs = bool(record.logprobs) if record.tokens else row.has_logprobs
        tokens = row.tokens + record.tokens
        if record.tokens:
            _write_piece(file, record.key, row.tokens, record.token_ids, record.logprobs)
        row = _Row(row.prompt_crc, tokens, has_logprobs, record.end, record.stop_chars)
    else:
        output = merge(None if row is None else _output(file, record.key, row), record)
        if output is None:
            return
        file.execute(f"DELETE FROM pieces WHERE {_IS_OF_KEY}", record.key)
        if output.tokens:
            _write_piece(file, record.key, 0, output.token_ids, output.logprobs)
        row = _Row(output.prompt_crc, output.tokens, bool(output.logprobs), output.end, output.stop_chars)
    file.execute("INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*record.key, *row))


def _write_piece(
    file: sqlite3.Connection, key: GenerationKey, start: int, token_ids: bytes, logprobs: list[TokenLogprobs]
) -> None:
    piece = (*key, start, token_ids, _encode(logprobs) if logprobs else None)
    file.execute("INSERT INTO pieces VALUES (?, ?, ?, ?, ?, ?, ?)", piece)


def _row(file: sqlite3.Connection, key: GenerationKey) -> _Row | None:
    columns = "prompt_crc, tokens, has_logprobs, end, stop_chars"
    found = file.execute(f"SELECT {columns} FROM outputs WHERE {_IS_OF_KEY}", key).fetchone()
    return None if found is None else _Row(*found)


def _output(file: sqlite3.Connection, key: GenerationKey, row: _Row) -> MergedOutput:
    token_ids: list[bytes] = []
    logprobs: list[TokenLogprobs] = []
    for ids, scores in file.execute(f"SELECT token_ids, logprobs FROM pieces WHERE {_IS_OF_KEY} ORDER BY start", key):
        token_ids.append(ids)
        if scores is not None:
            logprobs += _decode(scores)
    return MergedOutput(
        prompt_crc=row.prompt_crc,
        token_ids=b"".join(token_ids),
        logprobs=logprobs,
        end=row.end,
        stop_chars=row.stop_chars,
    )
