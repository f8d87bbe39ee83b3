"""The seeds of choices whose request gives none: random to callers, and the same again when their job goes on."""

from __future__ import annotations

import hashlib
import secrets

import msgspec

DRAWN_BITS = 53
"""JSON's numbers are exact up to there in every language."""
SECRET_BYTES = 16


class Seeds(msgspec.Struct, frozen=True, array_like=True):
    """`secret` is the job's, which the journal keeps. Of a lane's (see `job.py`) no two items have the same seed."""

    secret: bytes
    lane: int = 0

    @classmethod
    def drawn(cls) -> Seeds:
        return cls(secrets.token_bytes(SECRET_BYTES))

    def of(self, place: int, item: int) -> int:
        place_of_item = b"".join(number.to_bytes(8) for number in (self.lane, place, item))
        digest = hashlib.blake2b(place_of_item, key=self.secret, digest_size=8).digest()
        return int.from_bytes(digest) >> (64 - DRAWN_BITS)
