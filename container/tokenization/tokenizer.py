"""The model's tokenizer, in the server process: prompts to token ids and token ids to text."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from container.core import Chat, Prompt, Text, TokenIds
from container.errors import InvalidRequest
from container.tokenization.chat_template import ChatTemplate
from container.tokenization.control_tokens import ControlTokens, any_of
from container.tokenization.template_clock import install_clock, stopped_clock
from container.tokenization.tokenizer_files import load_tokenizer, save_tokenizer
from container.tokenization.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_MAX_COMPOSED = 4
"""Most characters that Unicode composition makes one of. A text that is too long even then need not be normalized to
know it, which would take many times its size in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    ids: list[int]
    text: str
    """The prompt as the model sees it, chat template applied."""


class Tokenizer:
    """Shared by the server's worker threads: nothing of it changes after `load`."""

    def __init__(
        self,
        tokenizer: Any,
        vocab_size: int,
        *,
        end_token_ids: Collection[int] = (),
        parses_control_tokens: bool = False,
    ) -> None:
        """`tokenizer` is one of transformers'; ids below `vocab_size` are taken, `end_token_ids` end texts.

        `parses_control_tokens`: the control tokens in a chat's messages are tokens, as if the template wrote them.
        """
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_token_characters = max(map(len, tokenizer.get_vocab()))
        added = {token_id: token for token_id, token in tokenizer.added_tokens_decoder.items() if token_id < vocab_size}
        self._special_ids = {token.content: token_id for token_id, token in added.items() if token.special}
        self._special_names = {token_id: name for name, token_id in self._special_ids.items()}
        self._special_token = any_of(self._special_ids)
        tokens = ControlTokens.of(tokenizer, end_token_ids)
        self.vocabulary = Vocabulary(tokenizer, tokens.shown)
        """Vocabulary of texts that show the special tokens that mark something in them, and no others."""
        self._vocabularies = {
            None: self.vocabulary,
            True: Vocabulary(tokenizer) if tokens.shown else self.vocabulary,
            False: Vocabulary(tokenizer, None),
        }
        self._template = ChatTemplate(tokenizer, tokens, parses_control_tokens=parses_control_tokens)
        self._first_ids, self._last_ids = _added_ids(tokenizer)
        self._has_warned = False

    @classmethod
    def load(
        cls,
        model_dir: str,
        *,
        trust_remote_code: bool,
        vocab_size: int | None = None,
        end_token_ids: Collection[int] = (),
        parses_control_tokens: bool = False,
    ) -> Tokenizer:
        """Import transformers and read the files, in seconds.

        `vocab_size` is the rows of the model's embedding, where known: the engine dies of an id past them.
        """
        tokenizer = load_tokenizer(model_dir, trust_remote_code=trust_remote_code)
        install_clock()
        if tokenizer.is_fast:
            # Transformers would set these at the first call, but a fast tokenizer must not change while another thread
            # encodes ("Already borrowed").
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.encode_special_tokens = tokenizer.split_special_tokens
        known = max(tokenizer.get_vocab().values()) + 1  # len() is less where the ids have gaps
        return cls(
            tokenizer,
            known if vocab_size is None else min(known, vocab_size),
            end_token_ids=end_token_ids,
            parses_control_tokens=parses_control_tokens,
        )

    @property
    def template_names(self) -> list[str]:
        """Names of the chat templates: one without a name is the default. Empty if there is none."""
        template = self._tokenizer.chat_template
        return sorted(template) if isinstance(template, dict) else ["default"] if template else []

    @property
    def end_token_id(self) -> int | None:
        """Id of the token with which the tokenizer says that a text ends."""
        name = self._tokenizer.special_tokens_map.get("eos_token")
        if name is None:
            return None
        token_id: int | None = self._tokenizer.convert_tokens_to_ids(name)
        # A name that the vocabulary doesn't have may get the unknown token's id.
        if token_id is None or self._tokenizer.convert_ids_to_tokens(token_id) != name:
            return None
        return token_id if token_id < self._vocab_size else None

    @property
    def spaces_special_tokens(self) -> bool:
        """Whether there are spaces between the special tokens of a text."""
        vocabulary = self.vocabulary_of(False)
        return any(vocabulary.token(token_id).text != name for token_id, name in self._special_names.items())

    def special_token(self, token_id: int) -> str | None:
        """Return the name of a special token, None for any other."""
        return self._special_names.get(token_id)

    def special_token_ids(self, strings: Iterable[str]) -> tuple[int, ...]:
        """Return the ids of those strings that are special tokens."""
        return tuple(self._special_ids[string] for string in strings if string in self._special_ids)

    def has_special_token_within(self, string: str) -> bool:
        """Whether a string is more than a special token, and has one in it."""
        return string not in self._special_ids and self._special_token.search(string) is not None

    def vocabulary_of(self, skips_special_tokens: bool | None) -> Vocabulary:
        """Return the vocabulary of texts without special tokens, with all of them, or, for None, with those that mark
        something."""
        return self._vocabularies[skips_special_tokens]

    def encode(
        self,
        prompt: Prompt,
        *,
        param: str,
        max_tokens: int,
        keep: int | None = None,
        clock: float | None = None,
        adds_special_tokens: bool | None = None,
        skips_special_tokens: bool | None = None,
    ) -> EncodedPrompt:
        """Return the prompt's ids, fewer than `max_tokens`, which prompt and answer share.

        `param` names the prompt's field. Of a longer prompt only the last `keep` tokens are used. `adds_special_tokens`
        are those that the tokenizer adds to any text, such as BOS: unless told otherwise to a text, but not to a chat,
        whose template writes its own. `skips_special_tokens` is how the text of token ids is shown. `clock` is the
        Unix time that a chat's template sees, by default the present. Raises InvalidRequest.
        """
        vocabulary = self.vocabulary_of(skips_special_tokens)
        match prompt:
            case TokenIds():
                ids = list(prompt.ids)
                if keep is not None and len(ids) > keep:
                    ids = ids[-keep:]
                self._validate_ids(ids, param, max_tokens)
                return EncodedPrompt(ids=ids, text=vocabulary.decode_whole(ids))
            case Text():
                text, marked, adds = prompt.text, None, adds_special_tokens is not False
            case Chat():
                with stopped_clock(clock):
                    chat = self._template.apply(prompt, param)
                text, marked, adds = chat.text, chat.marked, adds_special_tokens is True
        if keep is None or keep >= max_tokens:
            self._validate_length(text, marked, param, max_tokens)
            ids = self._tokens(text, marked, adds)
        else:
            # No more of a long text than surely has so many tokens: tokenizing it takes minutes.
            start = -keep * self._max_token_characters * _MAX_COMPOSED
            last_marked = None if marked is None else self._template.last_of(marked[start:], keep)
            ids = self._tokens(text[start:], last_marked, adds)
            if len(ids) > keep:
                ids = ids[-keep:]
                text = vocabulary.decode_whole(ids)
        self._validate_ids(ids, param, max_tokens)
        return EncodedPrompt(ids=ids, text=text)

    def save(self, model_dir: str, directory: str) -> None:
        """Write it to a directory, from which it loads at once if the model's own files had to be converted."""
        save_tokenizer(self._tokenizer, model_dir, directory)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids."""
        return self.vocabulary.decode(ids)

    def _validate_length(self, text: str, marked: str | None, param: str, max_tokens: int) -> None:
        """Raise InvalidRequest for a text that can't fit even if all tokens are the longest: tokenizing it takes
        minutes."""
        max_characters = max_tokens * self._max_token_characters
        characters = len(text)
        if max_characters < characters <= max_characters * _MAX_COMPOSED and self._tokenizer.is_fast:
            normalizer = self._tokenizer.backend_tokenizer.normalizer
            # The normalized text is cut into tokens, and Unicode composition, for one, makes it shorter.
            characters = len(normalizer.normalize_str(text)) if normalizer else characters
        pieces = 0 if marked is None else self._template.count_marked(marked)
        if characters > max_characters:
            message = (
                f"{param}: prompt has {characters} characters; the model holds {max_tokens} tokens,"
                f" {max_characters} characters at the very most"
            )
        elif pieces >= max_tokens:  # each has a token or more
            message = f"{param}: prompt has at least {pieces} tokens; the model holds {max_tokens}"
        else:
            return
        raise InvalidRequest(message, param=param, code="context_length_exceeded")

    def _tokens(self, text: str, marked: str | None, adds_special_tokens: bool) -> list[int]:
        """Tokenize a text. `marked` is the same text with marks around what is no token in it."""
        ids: list[int]
        if marked is None:
            # verbose=False: no warning past the tokenizer's own idea of the model's length, which is checked here.
            ids = self._tokenizer(text, add_special_tokens=adds_special_tokens, verbose=False)["input_ids"]
        else:
            ids = self._template.encode(marked)
            if adds_special_tokens:
                ids = [*self._first_ids, *ids, *self._last_ids]
        return self._without_second_beginning(ids) if adds_special_tokens else ids

    def _without_second_beginning(self, ids: list[int]) -> list[int]:
        """Leave out what the tokenizer added (BOS, mostly) where the text begins with the same."""
        added = len(self._first_ids)
        if not added or ids[: 2 * added] != self._first_ids * 2:
            return ids
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "a prompt begins with the special tokens that the tokenizer adds to any text; they are not added again",
                extra={"action": "second_bos_left_out"},
            )
        return ids[added:]

    def _validate_ids(self, ids: list[int], param: str, max_tokens: int) -> None:
        if not ids:
            raise InvalidRequest(f"{param}: prompt has no tokens; at least one is needed", param=param)
        if len(ids) > max_tokens - 1:
            message = f"{param}: prompt has {len(ids)} tokens; the model holds {max_tokens}"
            if len(ids) == max_tokens:
                message += ", of which the answer needs one"
            raise InvalidRequest(message, param=param, code="context_length_exceeded")
        if max(ids) >= self._vocab_size or min(ids) < 0:
            message = f"{param}: prompt has a token id outside the vocabulary; ids are from 0 to {self._vocab_size - 1}"
            raise InvalidRequest(message, param=param)


def _added_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer adds before and behind any text."""
    plain, whole = (tokenizer("a", add_special_tokens=is_added)["input_ids"] for is_added in (False, True))
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []
