"""Messages between processes: msgpack, each preceded by its length in bytes."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from io import IOBase
from typing import Any

import msgspec

HEADER = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder(enc_hook=array.tobytes)


def encode(message: Any) -> bytes:
    """Return the message with its length in front, ready to write. Arrays are written as their bytes."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


def read_frames(stream: IOBase) -> Iterator[bytes]:
    """Yield the bytes of each message until the stream ends, even if it ends in the middle of one."""
    while len(header := stream.read(HEADER.size)) == HEADER.size:
        (length,) = HEADER.unpack(header)
        body = stream.read(length)
        if len(body) < length:
            return
        yield body
