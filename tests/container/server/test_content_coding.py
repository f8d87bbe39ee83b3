"""Compressed bodies decoded, however they are cut into pieces, and refused where they are broken or too large."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable

import pytest
from backports import zstd

from container.errors import InvalidRequest, UnsupportedMedia
from container.server.content_coding import MAX_PIECE_BYTES, Decoder

TEXT = b'{"prompt": "The sea is"}\n{"prompt": "The sky is"}\n'
LEVEL_WITH_LARGE_WINDOW = {
    zstd.CompressionParameter.window_log: 27,
    zstd.CompressionParameter.enable_long_distance_matching: 1,
}
SKIPPABLE = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
BODIES = {
    "gzip": (["gzip"], gzip.compress(TEXT)),
    "x-gzip": (["x-gzip"], gzip.compress(TEXT)),
    "gzip with a name and a comment": (["gzip"], b"\x1f\x8b\x08\x18" + bytes(6) + b"n\0c\0" + gzip.compress(TEXT)[10:]),
    "gzip of several members": (["gzip"], gzip.compress(TEXT[:30]) + gzip.compress(b"") + gzip.compress(TEXT[30:])),
    "gzip padded with zeros": (["gzip"], gzip.compress(TEXT) + bytes(20)),
    "gzip that nothing declares": ([], gzip.compress(TEXT)),
    "gzip declared as identity": (["identity"], gzip.compress(TEXT)),
    "zstd": (["zstd"], zstd.compress(TEXT)),
    "zstd of several frames": (["zstd"], zstd.compress(TEXT[:30]) + zstd.compress(TEXT[30:])),
    "zstd with a skippable frame": (["zstd"], zstd.compress(TEXT) + SKIPPABLE),
    "zstd that nothing declares": ([], zstd.compress(TEXT)),
    "plain": ([], TEXT),
    "plain declared as identity": (["identity, ", "IDENTITY"], TEXT),
}


def decode(headers: list[str], pieces: Iterable[bytes]) -> bytes:
    """Decode as a server does: a piece at a time, the last one with the end."""
    decoder = Decoder(headers)
    decoded = bytearray()
    for piece in pieces:
        decoder.feed(piece, is_last=False)
        decoded += b"".join(iter(decoder.read, b""))
    decoder.feed(b"", is_last=True)
    return bytes(decoded + b"".join(iter(decoder.read, b"")))


def refusal(headers: list[str], body: bytes, cut: int = 1 << 30) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode(headers, [body[:cut], body[cut:]])
    assert (caught.value.param, caught.value.code) == ("body", "invalid_content_encoding")
    return caught.value.message


@pytest.mark.parametrize("name", BODIES)
def test_every_split_decodes_the_same(name: str) -> None:
    headers, body = BODIES[name]
    assert decode(headers, [body]) == TEXT
    assert decode(headers, (body[place : place + 1] for place in range(len(body)))) == TEXT
    for cut in range(len(body)):
        assert decode(headers, [body[:cut], body[cut:]]) == TEXT


@pytest.mark.parametrize("body", [b"", b"(", b"\x1f", b"(\xc2\xb5/x", b"{}", b"\x1f\x8b", b"\x1f\x8b\x00"])
def test_short_plain_body_stays_as_it_is(body: bytes) -> None:
    assert decode([], [body]) == decode([], [body[:1], body[1:]]) == body


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "zstd", "gzip that nothing declares", "zstd that nothing declares"])
def test_torn_body_is_refused_as_torn(name: str) -> None:
    headers, body = BODIES[name]
    for end in range(0 if headers else 4, len(body)):
        assert "ends within its" in refusal(headers, body[:end], end // 2)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("rest", [b"\n", b"garbage, and more of it", TEXT])
def test_something_behind_data_is_refused(coding: str, rest: bytes) -> None:
    _, body = BODIES[coding]
    for cut in (0, len(body) - 1, len(body), len(body) + 1):
        assert "something else behind" in refusal([coding], body + rest, cut)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("body", [TEXT, b"\x50", b"\xff\xfe{\0", zlib.compress(TEXT)])
def test_plain_body_declared_as_compressed_is_refused(coding: str, body: bytes) -> None:
    assert refusal([coding], body) == f"the body is not {coding}, which its Content-Encoding names"


def test_damaged_body_is_refused() -> None:
    _, body = BODIES["gzip"]
    assert refusal(["gzip"], body[:12] + b"\xff" * 8 + body[20:]) == "the body's gzip data is damaged"
    assert refusal(["gzip"], body[:-8] + bytes(8)) == "the body's gzip data is damaged"  # its checksum
    whole = zstd.compress(TEXT, options={zstd.CompressionParameter.checksum_flag: 1})
    assert refusal(["zstd"], whole[:-4] + bytes(4)) == "the body's zstd data is damaged"


def test_zstd_of_large_window_is_told_level() -> None:
    compressor = zstd.ZstdCompressor(options=LEVEL_WITH_LARGE_WINDOW)  # of unknown size, as a stream has it
    body = compressor.compress(TEXT) + compressor.flush()
    assert "needs a window of more than 8 MiB; compress it with level 19" in refusal(["zstd"], body)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_bomb_comes_in_bounded_pieces(coding: str) -> None:
    body = {"gzip": gzip.compress, "zstd": zstd.compress}[coding](bytes(16 << 20))
    assert len(body) < 20_000
    decoder = Decoder([coding])
    decoder.feed(body, is_last=True)
    pieces = [len(piece) for piece in iter(decoder.read, b"")]
    assert (sum(pieces), max(pieces)) == (16 << 20, MAX_PIECE_BYTES)


@pytest.mark.parametrize(
    "headers",
    [["br"], ["deflate"], ["compress"], ["gzip, gzip"], ["gzip", "zstd"], ["gzip, br"], ["utf-8"], ["aws-chunked"]],
    ids=", ".join,
)
def test_other_coding_names_those_that_are_taken(headers: list[str]) -> None:
    with pytest.raises(UnsupportedMedia, match="gzip or zstd") as caught:
        Decoder(headers)
    assert (caught.value.status, caught.value.code) == (415, "unsupported_content_encoding")
    assert caught.value.headers == {"accept-encoding": "gzip, zstd"}


@pytest.mark.parametrize("header", ["GZIP", " gzip ", "gzip, identity", ",gzip,", "X-GZip"])
def test_coding_is_told_in_any_spelling(header: str) -> None:
    assert decode([header], [gzip.compress(TEXT)]) == TEXT


def test_many_small_members_decode_whole() -> None:
    body = gzip.compress(b"ab\n") * 500
    pieces = (body[place : place + 1000] for place in range(0, len(body), 1000))
    assert decode(["gzip"], pieces) == b"ab\n" * 500
