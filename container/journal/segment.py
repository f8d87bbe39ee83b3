"""The journal's format: heads and segments, each an object that tells whether it is whole.

    magic (4) | version (1) | kind (1) | MessagePack | SHA-256 of all before it (32)

Positions count a sequence's output tokens; intervals are half-open.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec

from container.engine.sequence import TokenLogprobs

_MAGIC = b"LHJL"
_VERSION = 1
_PREFIX = len(_MAGIC) + 2
_SUM = hashlib.sha256().digest_size

End = Literal["stop", "length", "stop_string"]

_Int = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Position = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]

T = TypeVar("T", "Head", "Segment")


class CorruptFile(Exception):
    """Torn, changed, or of another version. The message says which."""


class GenerationKey(NamedTuple):
    """One sequence of a job."""

    slot: int
    line: int
    item: int
    choice: int


class Record(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Tokens of one sequence, from position `start` on. `stop_chars`: characters of the text before the stop string.

    Raises ValueError where its parts contradict each other.
    """

    slot: _Int
    line: _Int
    item: _Int
    choice: _Int
    prompt_crc: _Int
    start: _Position
    token_ids: bytes
    """Little-endian, four bytes each: see `packed`."""
    logprobs: list[TokenLogprobs] = []
    """One a token where the sequence asks for them."""
    end: End | None = None
    stop_chars: int | None = None

    def __post_init__(self) -> None:
        if len(self.token_ids) % 4:
            raise ValueError(f"{len(self.token_ids)} bytes of token ids")
        if self.logprobs and len(self.logprobs) != self.tokens:
            raise ValueError(f"{len(self.logprobs)} log probabilities of {self.tokens} tokens")

    @property
    def key(self) -> GenerationKey:
        return GenerationKey(self.slot, self.line, self.item, self.choice)

    @property
    def tokens(self) -> int:
        return len(self.token_ids) // 4


class SlotClosed(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Nothing more comes of this slot."""

    slot: _Int


Entry = Record | SlotClosed


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first object of an epoch: whose it is, and what of the earlier epochs counts."""

    digest: str
    secret: bytes
    epoch: int
    created: float
    """Unix seconds, of the job: kept through takeovers."""
    writer: str
    takes: list[tuple[int, int]]
    """Epochs, ascending, with the highest number of a segment of each that counts."""


class Segment(msgspec.Struct, frozen=True):
    """`number` counts from 1 in its epoch. Numbers may be missing; entries may come twice."""

    number: int
    entries: list[Entry]


_KINDS: dict[type[Head] | type[Segment], bytes] = {Head: b"H", Segment: b"S"}
_encoder = msgspec.msgpack.Encoder()


def packed(token_ids: Iterable[int]) -> bytes:
    ids = array("I", token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def unpacked(token_ids: bytes) -> list[int]:
    ids = array("I")
    ids.frombytes(token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()


def sealed_head(head: Head) -> bytes:
    return _sealed(_KINDS[Head], _encoder.encode(head))


def sealed_segment(number: int, entries: list[msgspec.Raw]) -> bytes:
    """Of entries that `encoded` made."""
    return _sealed(_KINDS[Segment], _encoder.encode({"number": number, "entries": entries}))


def encoded(entry: Entry) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(entry))


def opened(kind: type[T], data: bytes) -> T:
    """Raises CorruptFile."""
    if len(data) < _PREFIX + _SUM or data[: len(_MAGIC)] != _MAGIC:
        raise CorruptFile("not of a journal, or torn")
    if hashlib.sha256(memoryview(data)[:-_SUM]).digest() != data[-_SUM:]:
        raise CorruptFile("torn or changed: its checksum is wrong")
    if data[4] != _VERSION or data[5:_PREFIX] != _KINDS[kind]:
        raise CorruptFile(f"version {data[4]}, kind {data[5:_PREFIX]!r}; expected {_VERSION} and {_KINDS[kind]!r}")
    try:
        return msgspec.msgpack.decode(memoryview(data)[_PREFIX:-_SUM], type=kind)
    except msgspec.DecodeError as error:
        raise CorruptFile("whole, but not of a journal") from error


def _sealed(kind: bytes, body: bytes) -> bytes:
    start = _MAGIC + bytes([_VERSION]) + kind + body
    return start + hashlib.sha256(start).digest()
