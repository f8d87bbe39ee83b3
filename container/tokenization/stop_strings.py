"""Stop strings: where in a growing output the text must end. It knows token ids only through a decode function
and one that says which of them have text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

TOKENS_PER_CHARACTER = 4
"""A character has at most four UTF-8 bytes, a token at least one of them."""
MARGIN_TOKENS = 8
"""Some decoders drop a space at the start of what they are given."""
LAST_CHARACTERS = 4
"""How much of a stop string's end is looked for first: what is enough for most tokens to have no hit."""
UNFINISHED = "\ufffd"
"""What a decoder shows for the bytes of a character that isn't complete yet."""


class StopStrings:
    """The stop strings of one sequence. It remembers how far into the output it has looked: one for each sequence."""

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
        self._ends = tuple(string[-LAST_CHARACTERS:] for string in stop)
        self._longest = max(map(len, stop), default=0)
        self._decode = decode
        self._has_text = has_text
        self._min_tokens = min_tokens
        self._looked = 0
        self._said: list[int] = []
        """The last tokens with text: any number without any may lie between two of them."""
        self._kept = _window(max(self._longest, LAST_CHARACTERS)) + TOKENS_PER_CHARACTER - 1

    def find(self, output_ids: list[int]) -> str | None:
        """The text before the first stop string, or None if there is none yet. Call it as `output_ids` grows.

        Three looks, each at more and after fewer hits: at the end of the new text for the end of a stop string, then
        for a whole one, and only then at the whole output, whose text alone is exact.
        """
        if not self._stop:
            return None
        new = list(filter(self._has_text, output_ids[self._looked :]))
        self._looked = len(output_ids)
        self._said = self._said[-self._kept :] + new
        if not new or len(output_ids) <= self._min_tokens:
            return None
        if not _holds(self._tail(len(new), LAST_CHARACTERS), self._ends):
            return None
        if not _holds(self._tail(len(new), self._longest), self._stop):
            return None
        text = self._decode(output_ids).rstrip(UNFINISHED)
        settled = len(self._decode(output_ids[: self._min_tokens]).rstrip(UNFINISHED)) if self._min_tokens else 0
        ways = ((string, max(0, settled + 1 - len(string))) for string in self._stop)
        starts = [start for string, first in ways if (start := text.find(string, first)) >= 0]
        return text[: min(starts)] if starts else None

    def _tail(self, new: int, characters: int) -> str:
        """The text of the last `new` tokens with text and at least `characters` before their end.

        said   [ ........ | _window(characters) | new )
                          ^ start, moved back where it splits a character

        """
        start = max(0, len(self._said) - new - _window(characters))
        text = self._decode(self._said[start:])
        for _ in range(TOKENS_PER_CHARACTER - 1):
            # Beyond its own character, a split one can spoil the whole run of byte tokens that follows it.
            if start == 0 or not text.startswith(UNFINISHED):
                break
            start -= 1
            text = self._decode(self._said[start:])
        return text.rstrip(UNFINISHED)


def _window(characters: int) -> int:
    return TOKENS_PER_CHARACTER * characters + MARGIN_TOKENS


def _holds(text: str, strings: Sequence[str]) -> bool:
    return any(string in text for string in strings)
