"""Content codings of a body (RFC 9110, 8.4): gzip and zstd, decoded as a stream, in bounded pieces and memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

from container.errors import InvalidRequest, UnsupportedMedia

MAX_PIECE_BYTES = 1 << 20
"""Most that is decoded in one go."""
MAX_WINDOW_LOG = 23
"""Binary logarithm of the memory that zstd may take for one body: 8 MiB, the content coding's own limit (RFC 9659)."""
NAMES = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}
"""Codings by the names that a header gives them."""
MAGIC = {"gzip": b"\x1f\x8b\x08", "zstd": b"\x28\xb5\x2f\xfd"}
"""First bytes of each coding. No JSON and no text in UTF-8 begins with them."""
_GZIP_WINDOW_BITS = 31  # deflate's largest window, within gzip's head and checksum
_WINDOW_LOG_MAX: dict[int, int] = {DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
_TOO_LARGE_WINDOW = (
    f"the body's zstd data needs a window of more than {1 << MAX_WINDOW_LOG >> 20} MiB;"
    " compress it with level 19 or lower, without --long"
)
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(_GZIP_WINDOW_BITS),
    "zstd": lambda: ZstdDecompressor(options=_WINDOW_LOG_MAX),
}


class Decoder:
    """Decodes one body: `feed` what comes, then `read` until nothing is left.

    A body of no declared coding is told by its first bytes: an object in S3 may have lost the header that names it.
    """

    def __init__(self, headers: Sequence[str]) -> None:
        """`headers` are the values of Content-Encoding. Raises UnsupportedMedia."""
        self._coding = _declared_coding(headers)
        self._is_told = self._coding is not None
        self._data = b""
        """Bytes that were fed and are not decoded yet."""
        self._is_last = False
        self._stream: Any = None
        """Decompressor of the present member: both codings may have several, one behind the other."""
        self._head = b""
        """First bytes of the present member."""
        self._members = 0

    @property
    def is_identity(self) -> bool:
        """True if reading costs nothing, as the body is not compressed or not told yet."""
        return self._coding is None

    def feed(self, data: bytes, *, is_last: bool) -> None:
        """Take the next bytes of the body, once all before them are read."""
        self._data += data
        self._is_last = is_last
        if not self._is_told:
            self._coding = next((name for name, magic in MAGIC.items() if self._data.startswith(magic)), None)
            is_too_short = any(magic.startswith(self._data) for magic in MAGIC.values())
            self._is_told = self._coding is not None or is_last or not is_too_short

    def read(self) -> bytes:
        """Return the next decoded piece, or nothing if more must be fed. Raises InvalidRequest. For a worker thread."""
        if not self._is_told:
            return b""
        if self._coding is None:
            piece, self._data = self._data, b""
            return piece
        while self._begin_member():
            piece = self._decode()
            if piece:
                return piece
            if self._stream is not None:
                break
        if self._is_last and (self._stream is not None or not self._members):
            raise self._fault(f"the body ends within its {self._coding} data; send it whole")
        return b""

    def _begin_member(self) -> bool:
        """Return whether there may be something to decode."""
        if self._stream is not None:
            return True
        if self._members and self._coding == "gzip":
            self._data = self._data.lstrip(b"\0")  # tapes and block devices pad files, which gzip's own tools allow
        if not self._data:
            return False
        assert self._coding is not None, "a body without a coding has no members"
        self._stream = _DECOMPRESSORS[self._coding]()
        self._head = b""
        return True

    def _decode(self) -> bytes:
        stream = self._stream
        self._head += self._data[: 4 - len(self._head)]
        try:
            piece: bytes = stream.decompress(self._data, MAX_PIECE_BYTES)
        except (zlib.error, ZstdError) as error:
            if "too much memory" in str(error):
                raise _broken(_TOO_LARGE_WINDOW) from None
            raise self._fault(f"the body's {self._coding} data is damaged") from None
        if stream.eof:
            self._data = stream.unused_data
            self._stream = None
            self._members += 1
        else:
            self._data = getattr(stream, "unconsumed_tail", b"")  # zstd's keeps for itself what it has not decoded
        return piece

    def _fault(self, message: str) -> InvalidRequest:
        """Return the error with this message, unless the data never was what it should be."""
        assert self._coding is not None, "a body without a coding has no faults"
        magic = MAGIC[self._coding]
        if self._head[: len(magic)] == magic[: len(self._head)]:
            return _broken(message)
        if self._members:
            return _broken(f"the body has something else behind its {self._coding} data")
        return _broken(f"the body is not {self._coding}, which its Content-Encoding names")


def _declared_coding(headers: Sequence[str]) -> str | None:
    names = [name.strip().lower() for value in headers for name in value.split(",")]
    codings = [name for name in names if name not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in NAMES:
        what = "several content codings are" if len(codings) > 1 else "this content coding is"
        error = UnsupportedMedia(f"{what} not supported; gzip or zstd is", code="unsupported_content_encoding")
        error.headers["accept-encoding"] = "gzip, zstd"
        raise error
    return NAMES[codings[0]]


def _broken(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="body", code="invalid_content_encoding")
