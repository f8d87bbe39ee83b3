"""The journal's format: heads and segments, each an object with a checksum.

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
SHARED = 0
"""Slot of greedy and seeded outputs, which are the same for all requests of a job."""

_Int = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Position = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]

T = TypeVar("T", "Head", "Segment")


class CorruptFile(Exception):
    """An object is torn, changed, or of another version. The message says which."""


class GenerationKey(NamedTuple):
    """Identifies one output of a job: choice `choice` of item `item` in line `line` of a batch (0 for a document).

    `slot` tells requests apart where the output has a random seed.
    """

    slot: int
    line: int
    item: int
    choice: int


class Record(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Tokens of one output, from position `start` on. Raises ValueError where its parts contradict each other."""

    slot: _Int
    line: _Int
    item: _Int
    choice: _Int
    prompt_crc: _Int
    start: _Position
    token_ids: bytes
    """Token ids as little-endian integers of four bytes: see `pack`."""
    logprobs: list[TokenLogprobs] = []
    """One for each token if the request asks for them, else none."""
    end: End | None = None
    stop_chars: int | None = None
    """Characters of the text before the stop string that ended it."""

    def __post_init__(self) -> None:
        if len(self.token_ids) % 4:
            raise ValueError(f"{len(self.token_ids)} bytes of token ids")
        if self.logprobs and len(self.logprobs) != self.tokens:
            raise ValueError(f"{len(self.logprobs)} log probabilities of {self.tokens} tokens")

    @classmethod
    def of(
        cls,
        key: GenerationKey,
        prompt_crc: int,
        start: int,
        token_ids: Iterable[int],
        logprobs: list[TokenLogprobs],
        end: End | None,
        stop_chars: int | None,
    ) -> Record:
        return cls(*key, prompt_crc, start, pack(token_ids), logprobs, end, stop_chars)

    @property
    def key(self) -> GenerationKey:
        return GenerationKey(self.slot, self.line, self.item, self.choice)

    @property
    def tokens(self) -> int:
        return len(self.token_ids) // 4


class SlotClosed(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A client has the whole answer of this slot's request: the slot is not used again.

    The shared slot is used again. There it says that a request was answered with what was recorded before.
    """

    slot: _Int


Entry = Record | SlotClosed


class Head(msgspec.Struct, frozen=True, kw_only=True, rename={"included": "takes"}):
    """The first object of an epoch: who writes it, and which segments of earlier epochs count."""

    digest: str
    secret: bytes
    epoch: int
    created: float
    """Unix time at which the job was begun: takeovers keep it."""
    writer: str
    included: list[tuple[int, int]]
    """Earlier epochs, ascending, each with the number of its last segment that counts."""
    clock: float | None = None
    """Unix time that the chat templates of the epoch's requests see. Heads of version 0.1 have none."""


class Segment(msgspec.Struct, frozen=True):
    """Entries. `number` counts from 1 in an epoch; numbers may be missing, and entries may come twice."""

    number: int
    entries: list[Entry]


_KINDS: dict[type[Head] | type[Segment], bytes] = {Head: b"H", Segment: b"S"}
_encoder = msgspec.msgpack.Encoder()


def pack(token_ids: Iterable[int]) -> bytes:
    ids = array("I", token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def unpack(token_ids: bytes) -> list[int]:
    ids = array("I")
    ids.frombytes(token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()


def encode_head(head: Head) -> bytes:
    return _seal(_KINDS[Head], _encoder.encode(head))


def encode_segment(number: int, entries: list[msgspec.Raw]) -> bytes:
    """Encode a segment of entries that `encode_entry` made."""
    return _seal(_KINDS[Segment], _encoder.encode({"number": number, "entries": entries}))


def encode_entry(entry: Entry) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(entry))


def decode(kind: type[T], data: bytes) -> T:
    """Decode a whole head or segment. Raises CorruptFile."""
    if len(data) < _PREFIX + _SUM or data[: len(_MAGIC)] != _MAGIC:
        raise CorruptFile("it is not a journal's, or torn")
    if hashlib.sha256(memoryview(data)[:-_SUM]).digest() != data[-_SUM:]:
        raise CorruptFile("it is torn or changed: its checksum is wrong")
    if data[4] != _VERSION or data[5:_PREFIX] != _KINDS[kind]:
        raise CorruptFile(f"version {data[4]}, kind {data[5:_PREFIX]!r}; expected {_VERSION} and {_KINDS[kind]!r}")
    try:
        return msgspec.msgpack.decode(memoryview(data)[_PREFIX:-_SUM], type=kind)
    except msgspec.DecodeError as error:
        raise CorruptFile("it is whole, but not a journal's") from error


def _seal(kind: bytes, body: bytes) -> bytes:
    start = _MAGIC + bytes([_VERSION]) + kind + body
    return start + hashlib.sha256(start).digest()
