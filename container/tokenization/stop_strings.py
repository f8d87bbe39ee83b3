"""Stop strings: where in a growing output the text must end.

They know token ids only through a function that decodes them and one that says which of them have text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter

from container.tokenization.vocabulary import UNFINISHED

TOKENS_PER_CHARACTER = 4
"""Most tokens that make one character: it has at most four UTF-8 bytes, a token at least one of them."""
MARGIN_TOKENS = 8
"""Tokens decoded in front of the others, as some decoders drop a space at the start of what they are given."""
LAST_CHARACTERS = 4
"""Characters at a stop string's end that are looked for first: enough for most tokens to have no hit."""


class StopStrings:
    """The stop strings of one sequence, each with its own: it remembers how far into the output it has looked."""

    def __init__(
        self,
        stop: Sequence[str],
        decode: Callable[[list[int]], str],
        has_text: Callable[[int], bool],
        min_tokens: int = 0,
    ) -> None:
        """`decode` makes text of token ids, as the answer will be made; of those without text it makes nothing.

        As in vLLM, a stop string within the text of the first `min_tokens` does not count; one that ends after it does.
        """
        self._stop = tuple(stop)
        self._endings = tuple(string[-LAST_CHARACTERS:] for string in stop)
        self._max_characters = max(map(len, stop), default=0)
        self._decode = decode
        self._has_text = has_text
        self._min_tokens = min_tokens
        self.found = ""
        """The stop string that was found."""
        self._searched = 0
        """Output tokens that have been searched."""
        self._recent: list[int] = []
        """The last tokens with text: any number without any may lie between two of them."""
        self._max_recent = _window(max(self._max_characters, LAST_CHARACTERS)) + TOKENS_PER_CHARACTER - 1

    def find(self, output_ids: list[int]) -> str | None:
        """Return the text before the first stop string, or None if there is none yet. Call it as `output_ids` grows.

        Three searches, each of more text and after fewer hits: at the end of the new text for the end of a stop string,
        then for a whole one, and only then in the whole output, whose text alone is exact.
        """
        if not self._stop:
            return None
        new = list(filter(self._has_text, output_ids[self._searched :]))
        self._searched = len(output_ids)
        self._recent = self._recent[-self._max_recent :] + new
        if not new or len(output_ids) <= self._min_tokens:
            return None
        for characters, strings in ((LAST_CHARACTERS, self._endings), (self._max_characters, self._stop)):
            tail = self._tail(len(new), characters)
            if not any(string in tail for string in strings):
                return None
        text = self._decode(output_ids).rstrip(UNFINISHED)
        settled = len(self._decode(output_ids[: self._min_tokens]).rstrip(UNFINISHED)) if self._min_tokens else 0
        firsts = ((string, max(0, settled + 1 - len(string))) for string in self._stop)
        hits = [(start, string) for string, first in firsts if (start := text.find(string, first)) >= 0]
        if not hits:
            return None
        start, self.found = min(hits, key=itemgetter(0))
        return text[:start]

    def _tail(self, new: int, characters: int) -> str:
        """Return the text of the last `new` tokens with text and at least `characters` before their end.

        recent [ ........ | _window(characters) | new )
                          ^ start, moved back where it splits a character

        """
        start = max(0, len(self._recent) - new - _window(characters))
        text = self._decode(self._recent[start:])
        for _ in range(TOKENS_PER_CHARACTER - 1):
            # Beyond its own character, a split one can spoil the whole run of byte tokens that follows it.
            if start == 0 or not text.startswith(UNFINISHED):
                break
            start -= 1
            text = self._decode(self._recent[start:])
        return text.rstrip(UNFINISHED)


def _window(characters: int) -> int:
    """Return how many tokens surely make that many characters."""
    return TOKENS_PER_CHARACTER * characters + MARGIN_TOKENS
