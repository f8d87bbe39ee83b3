"""The vocabulary: the bytes that each single token brings to a text. It knows no prompts and imports no torch.

Decoders are given a token between others, as the first one of a text may lose its space (sentencepiece).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""Name that sentencepiece gives to a byte that is in no other token."""
_BEFORE = "x"
"""Text decoded in front of a token, to see what the token is behind another one."""
_MAX_CACHED = 1 << 15


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
    """None for a special token, which no text shows."""
    is_byte: bool = False
    """Whether it is one of sentencepiece's bytes, a run of which is decoded only as a whole."""


class Vocabulary:
    """Shared by the server's worker threads. It changes nothing but its cache of tokens."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is one of transformers'."""
        self._tokenizer = tokenizer
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
        """Whether the token is not special: those that are can be left out of a text without changing it."""
        return bool(self.token(token_id).bytes)

    def text(self, ids: Sequence[int], *, at_start: bool) -> str:
        """Return the text of tokens, none of them special: at the start of a text, or behind another token."""
        names = [name for name in self._tokenizer.convert_ids_to_tokens(list(ids)) if name is not None]
        return self._between(names) if not at_start else str(self._tokenizer.convert_tokens_to_string(names))

    def _decode(self, token_id: int) -> Token:
        name = self._tokenizer.convert_ids_to_tokens(token_id)
        if name is None:
            return Token("", b"")
        with_special, without_special = (
            self._tokenizer.decode([token_id], skip_special_tokens=is_skipped) for is_skipped in (False, True)
        )
        if with_special and not without_special:
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
