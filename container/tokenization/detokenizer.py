"""Growing text from growing output: a piece for each token, as soon as it can no longer change."""

from __future__ import annotations

import codecs

from container.tokenization.vocabulary import Vocabulary


class Detokenizer:
    """The text of one sequence. All pieces together are what decoding all ids at once gives, and none splits a
    character: what may still become another one is held back, and left out if its last bytes never come.

    Byte-level tokenizers join bytes, and only an unfinished character waits. sentencepiece's byte tokens wait for the
    end of their run: one byte that is not UTF-8 turns the whole run into replacement characters.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[int] = []
        self._is_at_start = True

    def add(self, token_id: int) -> str:
        """Return the text that this token completes: often its own, sometimes none."""
        token = self._vocabulary.token(token_id)
        if not token.bytes:
            return ""
        if self._vocabulary.is_byte_level:
            return self._utf8.decode(token.bytes)
        self._held.append(token_id)
        return "" if token.is_byte else self._release()

    def finish(self) -> str:
        """Return the whole characters that were held back. Nothing may be added after it."""
        lacking = self._vocabulary.unfinished(self._held)
        self._held = [token_id for place, token_id in enumerate(self._held) if place not in lacking]
        return self._release()

    def _release(self) -> str:
        if not self._held:
            return ""
        text = self._vocabulary.text(self._held, at_start=self._is_at_start)
        self._held, self._is_at_start = [], False
        return text
