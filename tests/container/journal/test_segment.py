from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.engine.sequence import TokenLogprobs
from container.journal.segment import (
    CorruptFile,
    Entry,
    Head,
    Record,
    Segment,
    SlotClosed,
    decode,
    encode_entry,
    encode_head,
    encode_segment,
    pack,
    unpack,
)

HEAD = Head(digest="d", secret=bytes(16), epoch=3, created=1.5, writer="w", included=[(1, 7), (2, 1)])
ENTRIES: list[Entry] = [
    Record(1, 2, 3, 4, 5, 6, pack([7, 8]), [TokenLogprobs(-0.5, [(7, -0.5), (9, -2.25)]), TokenLogprobs(-1.0)]),
    Record(1, 2, 3, 4, 5, 8, b"", end="stop_string", stop_chars=12),
    SlotClosed(9),
]


def segment(number: int, entries: list[Entry]) -> bytes:
    return encode_segment(number, [encode_entry(entry) for entry in entries])


def test_a_head_comes_back() -> None:
    assert decode(Head, encode_head(HEAD)) == HEAD


def test_a_segment_comes_back() -> None:
    assert decode(Segment, segment(2, ENTRIES)) == Segment(2, ENTRIES)


@given(st.lists(st.integers(0, (1 << 32) - 1)))
def test_token_ids_take_four_bytes_each(token_ids: list[int]) -> None:
    assert unpack(pack(token_ids)) == token_ids
    assert len(pack(token_ids)) == 4 * len(token_ids)


def test_token_ids_are_little_endian() -> None:
    assert pack([1, 258]) == b"\x01\0\0\0\x02\x01\0\0"


@pytest.mark.parametrize("data", [encode_head(HEAD), segment(1, ENTRIES)], ids=["head", "segment"])
def test_torn_object_is_corrupt(data: bytes) -> None:
    kind = Head if data == encode_head(HEAD) else Segment
    for size in range(len(data)):
        with pytest.raises(CorruptFile):
            decode(kind, data[:size])


def test_changed_bit_is_corrupt() -> None:
    data = segment(1, ENTRIES)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptFile):
            decode(Segment, bytes(changed))


def test_one_of_the_other_kind_is_told() -> None:
    with pytest.raises(CorruptFile, match="kind"):
        decode(Segment, encode_head(HEAD))


def with_checksum(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def test_one_of_another_version_is_told() -> None:
    data = bytearray(encode_head(HEAD)[:-32])
    data[4] = 2
    with pytest.raises(CorruptFile, match="version 2"):
        decode(Head, with_checksum(bytes(data)))


@pytest.mark.parametrize(
    "body",
    [
        {"number": 1, "entries": [[2, 1]]},
        {"number": 1, "entries": [[1, -1]]},
        {"number": 1, "entries": [[1, 1 << 63]]},
        {"number": 1, "entries": [[0, 1, 1, 1, 1, 1, 1 << 32, b""]]},
        {"number": 1, "entries": [[0, 1, 1, 1, 1, 1, 0, b"abc"]]},
        {"number": 1, "entries": [[0, 1, 1, 1, 1, 1, 0, b"abcd", [[-1.0], [-1.0]]]]},
        {"number": 1, "entries": [[0, 1, 1, 1, 1, 1, 0, b"abcd", [], "deadline"]]},
        {"number": "1", "entries": []},
        [],
    ],
)
def test_foreign_body_is_corrupt(body: object) -> None:
    with pytest.raises(CorruptFile, match="whole, but not"):
        decode(Segment, with_checksum(b"LHJL\x01S" + msgspec.msgpack.encode(body)))


def test_contradictory_record_is_refused() -> None:
    with pytest.raises(ValueError, match="3 bytes"):
        Record(0, 0, 0, 0, 0, 0, b"abc")
    with pytest.raises(ValueError, match="2 log probabilities of 1 tokens"):
        Record(0, 0, 0, 0, 0, 0, b"abcd", [TokenLogprobs(-1.0)] * 2)
