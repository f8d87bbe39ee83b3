"""Stop strings: where in a growing output the text must end. It knows token ids only through a decode function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

TOKENS_PER_CHARACTER = 4
"""A character has at most four UTF-8 bytes, a token at least one of them."""
MARGIN_TOKENS = 8
"""Some decoders drop a space at the start of what they are given, and skipped special tokens have no text."""
LAST_CHARACTERS = 4
"""How much of a stop string's end is looked for first: what is enough for most tokens to have no hit."""
UNFINISHED = "\ufffd"
"""What a decoder shows for the bytes of a character that isn't complete yet."""


class StopStrings:
    """The stop strings of one sequence. It remembers how far into the output it has looked: one for each sequence."""

    def __init__(self, stop: Sequence[str], decode: Callable[[list[int]], str], min_tokens: int = 0) -> None:
        """`decode` makes text of token ids, as the answer will be made.

        As in vLLM, a stop string within the text of the first `min_tokens` does not count; one that ends after it does.
        """
        self._stop = tuple(stop)
        self._ends = tuple(string[-LAST_CHARACTERS:] for string in stop)
        self._longest = max(map(len, stop), default=0)
        self._decode = decode
        self._min_tokens = self._looked = min_tokens

    def find(self, output_ids: list[int]) -> str | None:
        """The text before the first stop string, or None if there is none yet. Call it as `output_ids` grows.

        Three looks, each at more and after fewer hits: at the end of the new text for the end of a stop string, then
        for a whole one, and only then at the whole output, whose text alone is exact.
        """
        new = len(output_ids) - self._looked
        if not self._stop or new <= 0:
            return None
        self._looked = len(output_ids)
        if not _holds(self._tail(output_ids, new, LAST_CHARACTERS), self._ends):
            return None
        if not _holds(self._tail(output_ids, new, self._longest), self._stop):
            return None
        text = self._decode(output_ids).rstrip(UNFINISHED)
        settled = len(self._decode(output_ids[: self._min_tokens]).rstrip(UNFINISHED)) if self._min_tokens else 0
        ways = ((string, max(0, settled + 1 - len(string))) for string in self._stop)
        starts = [start for string, first in ways if (start := text.find(string, first)) >= 0]
        return text[: min(starts)] if starts else None

    def _tail(self, output_ids: list[int], new: int, characters: int) -> str:
        """The text of the last `new` tokens and at least `characters` before their end.

        output_ids   [ ........ | window of TOKENS_PER_CHARACTER * characters + MARGIN_TOKENS | new )
                                ^ start, moved back where it splits a character

        """
        start = max(0, len(output_ids) - new - TOKENS_PER_CHARACTER * characters - MARGIN_TOKENS)
        text = self._decode(output_ids[start:])
        for _ in range(TOKENS_PER_CHARACTER - 1):
            # Beyond its own character, a split one can spoil the whole run of byte tokens that follows it.
            if start == 0 or not text.startswith(UNFINISHED):
                break
            start -= 1
            text = self._decode(output_ids[start:])
        return text.rstrip(UNFINISHED)


def _holds(text: str, strings: Sequence[str]) -> bool:
    return any(string in text for string in strings)
