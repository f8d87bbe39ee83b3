"""What a job's journal says of its sequences, in a file: a million finished ones take no memory."""

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
from container.journal.merged_output import MergedOutput, better, of
from container.journal.segment import End, Entry, GenerationKey, Record, unpacked

_TRACKS = (
    "CREATE TABLE tracks (lane, place, item, choice, whose, track, prompt_crc, tokens, has_logprobs, end, stop_chars,"
    " PRIMARY KEY (lane, place, item, choice, whose)) WITHOUT ROWID"
)
_PIECES = "CREATE TABLE pieces (id INTEGER PRIMARY KEY, token_ids BLOB, logprobs BLOB)"
_AT_ONCE = 64
"""Records merged while a reader waits."""
_OLD, _NEW = 0, 1
"""Whose chain: what was loaded, and what this process put. One sequence may have both."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[TokenLogprobs]).decode


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence's output so far. `logprobs` are one a token, or none."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    end: End | None
    stop_chars: int | None
    prompt_crc: int


class _Row(NamedTuple):
    """A chain without its tokens, which lie in `pieces` under generation << 32 | start."""

    whose: int
    track: int
    prompt_crc: int
    tokens: int
    has_logprobs: int
    end: End | None
    stop_chars: int | None

    def is_followed_by(self, record: Record) -> bool:
        """Whether the record goes on right behind it: it is added without a look at what is there."""
        return (
            record.prompt_crc == self.prompt_crc
            and self.end is None
            and record.start == self.tokens
            and (not self.tokens or not record.tokens or bool(record.logprobs) == bool(self.has_logprobs))
        )


class OutputTable:
    """Owns the file, which is gone with the process. Any thread may, also `load` beside `put`.

    Loaded records come in the journal's order, and all count as older than those that are put, whichever comes first.
    A sequence that goes on from what `get` told before all was loaded is to be put from its first token on.
    Raises OutOfSpace when the disk is full, and from then on: nothing in the file can be relied on any more.
    """

    def __init__(self, directory: str) -> None:
        self._next = threading.Lock()
        self._using = threading.Lock()
        self._is_full = False
        self._tracks = 0
        self._directory = directory
        self._opened: sqlite3.Connection | None = None  # with the first record: most jobs have no past

    def close(self) -> None:
        with self._using, contextlib.suppress(sqlite3.Error):
            if self._opened is not None:
                self._opened.close()

    def load(self, entries: Iterable[Entry]) -> None:
        """Of earlier writers."""
        self._merge(entries, _OLD)

    def put(self, entries: Iterable[Entry]) -> None:
        """Of this one."""
        self._merge(entries, _NEW)

    def get(self, key: GenerationKey) -> Saved | None:
        if self._opened is None:
            return None
        with self._turn():
            chain = self._best(key, self._rows(key))
        if chain is None:
            return None
        return Saved(
            token_ids=unpacked(chain.token_ids),
            logprobs=chain.logprobs,
            end=chain.end,
            stop_chars=chain.stop_chars,
            prompt_crc=chain.prompt_crc,
        )

    def counts(self) -> tuple[int, int, int]:
        """Finished sequences, unfinished ones, and the tokens of both. Looks at each of them."""
        finished = unfinished = tokens = 0
        if self._opened is None:
            return 0, 0, 0
        with self._turn():
            keys = [
                GenerationKey(*key)
                for key in self._file.execute("SELECT DISTINCT lane, place, item, choice FROM tracks")
            ]
        for first in range(0, len(keys), _AT_ONCE):
            with self._turn():
                for key in keys[first : first + _AT_ONCE]:
                    rows = self._rows(key)
                    best: MergedOutput | _Row | None = (
                        self._best(key, rows) if len(rows) > 1 else next(iter(rows.values()), None)
                    )
                    if best is not None:
                        tokens += best.tokens
                        finished += best.end is not None
                        unfinished += best.end is None
        return finished, unfinished, tokens

    def slots(self) -> set[int]:
        """Those of which anything is there."""
        if self._opened is None:
            return set()
        with self._turn():
            return {slot for (slot,) in self._file.execute("SELECT DISTINCT lane FROM tracks")}

    def drop(self, slot: int) -> None:
        """Nobody will ask for it any more."""
        if self._opened is None:
            return
        with self._turn():
            lines = self._file.execute("SELECT track FROM tracks WHERE lane = ?", (slot,)).fetchall()
            for (track,) in lines:
                self._file.execute("DELETE FROM pieces WHERE id >= ? AND id < ?", (track << 32, (track + 1) << 32))
            self._file.execute("DELETE FROM tracks WHERE lane = ?", (slot,))

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        # Through two locks, as one that is released and taken again at once, as by `load`, would starve all others.
        with self._next:
            self._using.acquire()
        try:
            if self._is_full:
                raise full_disk()
            yield
        except sqlite3.Error as error:  # full, or broken: in either case it can't be relied on
            self._is_full = True
            raise full_disk() from error
        finally:
            self._using.release()

    def _merge(self, entries: Iterable[Entry], whose: int) -> None:
        records = [entry for entry in entries if isinstance(entry, Record)]
        for first in range(0, len(records), _AT_ONCE):
            with self._turn():
                for record in records[first : first + _AT_ONCE]:
                    self._merge_one(record, whose)

    def _merge_one(self, record: Record, whose: int) -> None:
        key = record.key
        rows = self._rows(key)
        row = rows.get(whose)
        if row is not None and row.is_followed_by(record):
            rows[whose] = self._add(key, row, record)
        else:
            chain = self._merged(key, rows, record, whose)
            if chain is not None:
                rows[whose] = self._write(key, row, whose, chain)

    def _merged(self, key: GenerationKey, rows: dict[int, _Row], record: Record, whose: int) -> MergedOutput | None:
        row = rows.get(whose)
        if row is not None and record.start <= row.tokens:
            base: MergedOutput | None = self._chain(row)
        elif whose == _NEW and record.start:
            base = self._best(key, rows)  # the sequence went on behind what had been loaded
        else:
            base = None
        return of(record) if base is None else base.then(record)

    def _best(self, key: GenerationKey, rows: dict[int, _Row]) -> MergedOutput | None:
        old, new = (self._chain(rows[whose]) if whose in rows else None for whose in (_OLD, _NEW))
        return better(old, new)

    # The file

    @property
    def _file(self) -> sqlite3.Connection:
        if self._opened is None:
            self._opened = open_scratch(self._directory, _TRACKS, _PIECES)
        return self._opened

    def _rows(self, key: GenerationKey) -> dict[int, _Row]:
        found = self._file.execute(
            "SELECT whose, track, prompt_crc, tokens, has_logprobs, end, stop_chars FROM tracks"
            " WHERE lane = ? AND place = ? AND item = ? AND choice = ?",
            key,
        )
        return {row[0]: _Row(*row) for row in found}

    def _chain(self, row: _Row) -> MergedOutput:
        token_ids: list[bytes] = []
        logprobs: list[TokenLogprobs] = []
        for ids, encoded in self._file.execute(
            "SELECT token_ids, logprobs FROM pieces WHERE id >= ? AND id < ? ORDER BY id",
            (row.track << 32, (row.track + 1) << 32),
        ):
            token_ids.append(ids)
            if encoded is not None:
                logprobs += _decode(encoded)
        return MergedOutput(
            prompt_crc=row.prompt_crc,
            token_ids=b"".join(token_ids),
            logprobs=logprobs,
            end=row.end,
            stop_chars=row.stop_chars,
        )

    def _add(self, key: GenerationKey, row: _Row, record: Record) -> _Row:
        if record.tokens:
            self._write_piece(row.track, row.tokens, record.token_ids, record.logprobs)
        has_logprobs = bool(record.logprobs) if record.tokens else row.has_logprobs
        tokens = row.tokens + record.tokens
        return self._write_row(
            key,
            row._replace(tokens=tokens, has_logprobs=has_logprobs, end=record.end, stop_chars=record.stop_chars),
        )

    def _write(self, key: GenerationKey, row: _Row | None, whose: int, chain: MergedOutput) -> _Row:
        """In the place of what was there of `row`."""
        if row is None:
            track = self._tracks
            self._tracks += 1
        else:
            track = row.track
            self._file.execute("DELETE FROM pieces WHERE id >= ? AND id < ?", (track << 32, (track + 1) << 32))
        if chain.tokens:
            self._write_piece(track, 0, chain.token_ids, chain.logprobs)
        return self._write_row(
            key,
            _Row(whose, track, chain.prompt_crc, chain.tokens, bool(chain.logprobs), chain.end, chain.stop_chars),
        )

    def _write_piece(self, track: int, start: int, token_ids: bytes, logprobs: list[TokenLogprobs]) -> None:
        encoded = _encode(logprobs) if logprobs else None
        self._file.execute("INSERT INTO pieces VALUES (?, ?, ?)", (track << 32 | start, token_ids, encoded))

    def _write_row(self, key: GenerationKey, row: _Row) -> _Row:
        self._file.execute("INSERT OR REPLACE INTO tracks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*key, *row))
        return row
