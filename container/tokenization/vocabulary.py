"""The vocabulary: the bytes that each single token brings to a text. It knows no prompts and imports no torch.

Decoders are given a token between others, as the first one of a text may lose its space (sentencepiece).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""Name that sentencepiece gives to a byte that is in no other token."""
_BEFORE = "x"
"""Text decoded in front of a token, to see what the token is behind another one."""
_MAX_CACHED = 1 << 15
_MAX_CHARACTER_BYTES = 4
UNFINISHED = "\ufffd"
"""Character that a decoder shows for the bytes of one that isn't complete yet."""

_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_UNPRINTABLE = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF_CHARACTER = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + index): byte for index, byte in enumerate(_UNPRINTABLE)
}
"""GPT-2's visible names of the 256 bytes, with which every byte-level tokenizer writes its tokens.

A printable Latin-1 character is its own name, the others are the characters from 256 on
(https://github.com/openai/gpt-2, encoder.py).
"""


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    """The token's text. Bytes that are not whole characters are escaped: `\\xf0\\x9f`. A special token has its name."""
    bytes: bytes | None
    """The token's share of a text. None for a special token that texts don't show."""
    is_byte: bool = False
    """Whether it is one of sentencepiece's bytes, a run of which is decoded only as a whole."""


class Vocabulary:
    """Tokens as texts of one kind show them: with all special tokens, with some of them, or with none.

    Shared by the server's worker threads. It changes nothing but its cache of tokens.
    """

    def __init__(self, tokenizer: Any, shown: Collection[str] | None = ()) -> None:
        """`tokenizer` is one of transformers'; `shown` are the special tokens that a text shows, None all of them."""
        self._tokenizer = tokenizer
        self._shown = shown
        decoder = tokenizer.backend_tokenizer.decoder if tokenizer.is_fast else None
        written = decoder.__getstate__() if decoder is not None else b""
        self.is_byte_level = b'"ByteLevel"' in written
        """Whether a text is the concatenation of its tokens' bytes."""
        self._has_byte_tokens = b'"ByteFallback"' in written or not tokenizer.is_fast
        self._tokens: dict[int, Token] = {}

    def token(self, token_id: int) -> Token:
        """Return the token of an id; an unknown id stands for no bytes."""
        token = self._tokens.get(token_id)
        if token is None:
            token = self._decode(token_id)
            if len(self._tokens) >= _MAX_CACHED:
                self._tokens.clear()
            self._tokens[token_id] = token
        return token

    def has_text(self, token_id: int) -> bool:
        """Whether texts show the token: those that they don't can be left out without changing a text."""
        return bool(self.token(token_id).bytes)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with U+FFFD for bytes that are not UTF-8."""
        if self._shown:
            ids = [token_id for token_id in ids if self.token(token_id).bytes is not None]
        skipped = self._shown is not None and not self._shown
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skipped))

    def decode_whole(self, ids: Sequence[int]) -> str:
        """Return the text of ids. A last character that lacks some of its bytes is left out."""
        text = self.decode(ids)
        if not text.endswith(UNFINISHED) or not (lacking := self.unfinished(ids)):
            return text
        if self.is_byte_level:
            return text[:-1]  # of all its bytes, the decoder makes one U+FFFD
        return self.decode([token_id for place, token_id in enumerate(ids) if place not in lacking])

    def unfinished(self, ids: Sequence[int]) -> list[int]:
        """Return the places of the tokens that end the text within a character, the last one first."""
        places, last = [], b""
        for place in reversed(range(len(ids))):
            token = self.token(ids[place])
            if not token.bytes:
                continue
            if len(last) >= _MAX_CHARACTER_BYTES or not (self.is_byte_level or token.is_byte):
                break
            places.append(place)
            last = token.bytes + last
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        utf8.decode(last)
        return places[: len(utf8.getstate()[0])]

    def text(self, ids: Sequence[int], *, at_start: bool) -> str:
        """Return the text of tokens that texts show: at the start of a text, or behind another token."""
        names = [name for name in self._tokenizer.convert_ids_to_tokens(list(ids)) if name is not None]
        return self._between(names) if not at_start else str(self._tokenizer.convert_tokens_to_string(names))

    def _decode(self, token_id: int) -> Token:
        name = self._tokenizer.convert_ids_to_tokens(token_id)
        if name is None:
            return Token("", b"")
        with_special, without_special = (
            self._tokenizer.decode([token_id], skip_special_tokens=is_skipped) for is_skipped in (False, True)
        )
        if with_special and not without_special and self._shown is not None and name not in self._shown:
            return Token(name, None)
        if self._has_byte_tokens and (byte := _BYTE_TOKEN.fullmatch(name)):
            value = bytes.fromhex(byte[1])
            return Token(_shown(value), value, is_byte=True)
        if not self.is_byte_level:
            value = self._between([name]).encode()
        elif all(character in _BYTE_OF_CHARACTER for character in name):
            value = bytes(_BYTE_OF_CHARACTER[character] for character in name)
        else:  # an added token, which is text as it stands, as the decoder has it
            value = name.encode()
        return Token(_shown(value), value)

    def _between(self, names: list[str]) -> str:
        text: str = self._tokenizer.convert_tokens_to_string([_BEFORE, *names])
        return text[len(_BEFORE) :]


def _shown(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
