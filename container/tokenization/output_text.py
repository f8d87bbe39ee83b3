"""The text of one output: where a stop string ends it, and what of its tokens an answer shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from container.tokenization.detokenizer import Detokenizer
from container.tokenization.preparer import Prepared
from container.tokenization.stop_strings import StopStrings
from container.tokenization.tokenizer import Tokenizer
from container.tokenization.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class FinishedText:
    text: str
    tokens: int
    """Number of the output's tokens that the text is made of."""
    stop: str | None = None
    """The stop string that ended it."""


class OutputText:
    """Follows one growing output. Its methods take the output's ids; `finish` may run in another thread."""

    def __init__(self, tokenizer: Tokenizer, prepared: Prepared, *, min_new_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._skips_special_tokens = prepared.skips_special_tokens
        self._stop = prepared.stop
        self._includes_stop = prepared.includes_stop
        self._min_new_tokens = min_new_tokens
        self._search = self._new_search() if prepared.stop else None

    @property
    def vocabulary(self) -> Vocabulary:
        """Tokens as the text shows them."""
        return self._tokenizer.vocabulary_of(self._skips_special_tokens)

    @property
    def _searched(self) -> Vocabulary:
        """Tokens as stop strings see them: one that goes over the name of a special token needs all names."""
        goes_over_names = any(map(self._tokenizer.has_special_token_within, self._stop))
        return self._tokenizer.vocabulary_of(False) if goes_over_names else self.vocabulary

    def find_stop(self, ids: list[int]) -> int | None:
        """Return the characters of the text before its first stop string, or None if there is none yet.

        Call it as the output grows.
        """
        before = None if self._search is None else self._search.find(ids)
        return None if before is None else self._shown_characters(ids, len(before))

    def finish(self, ids: list[int], *, is_stopped: bool, stop_chars: int | None) -> FinishedText:
        """Return what the answer shows. It takes as long as the text.

        `is_stopped`: the last token is a stop token. `stop_chars` are the characters before the stop string that ended
        the text. Unless the request says otherwise, stop strings and special tokens that end a text are left out.
        """
        if stop_chars is not None:
            text, found = self.vocabulary.decode(ids)[:stop_chars], self._found_string(ids)
            return FinishedText(text + found if self._includes_stop else text, len(ids), found)
        if not is_stopped:
            return FinishedText(self.vocabulary.decode_whole(ids), len(ids))
        name = self._tokenizer.special_token(ids[-1])
        stop = name if name in self._stop else None
        if name is None:
            is_shown = self._includes_stop is not False
        else:
            is_shown = bool(self._includes_stop) and (stop is not None or self.vocabulary.has_text(ids[-1]))
        shown = ids if is_shown else ids[:-1]
        text = self.vocabulary.decode_whole(shown)
        if is_shown and not self.vocabulary.has_text(ids[-1]):
            text += name or ""
        return FinishedText(text, len(shown), stop)

    def _new_search(self) -> StopStrings:
        searched = self._searched
        return StopStrings(self._stop, searched.decode, searched.has_text, self._min_new_tokens)

    def _found_string(self, ids: list[int]) -> str:
        """Return the stop string that ended the text."""
        search = self._new_search()
        search.find(ids)
        return search.found

    def _shown_characters(self, ids: Sequence[int], searched: int) -> int:
        """Return how many characters the answer shows of the first `searched` ones of the text that is searched."""
        vocabulary = self._searched
        if vocabulary is self.vocabulary:
            return searched
        detokenizer, before = Detokenizer(vocabulary), 0
        for place, token_id in enumerate(ids):
            piece = detokenizer.add(token_id)
            if before + len(piece) <= searched:
                before += len(piece)
                continue
            behind = len(piece) - (searched - before)
            if not self.vocabulary.has_text(token_id):  # its name ends the piece
                behind = max(0, behind - len(vocabulary.token(token_id).text))
            return len(self.vocabulary.decode_whole(ids[: place + 1])) - behind
        return len(self.vocabulary.decode_whole(ids))
