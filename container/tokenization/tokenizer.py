"""The model's tokenizer, in the server process: prompts to token ids and token ids to text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from container.core import Chat, Prompt, Text, TokenIds
from container.errors import InvalidRequest
from container.tokenization.template_reads import TemplateReads, find_text_arguments
from container.tokenization.tokenizer_files import load_tokenizer, save_tokenizer
from container.tokenization.vocabulary import Vocabulary

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

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        """`tokenizer` is one of transformers'; ids below `vocab_size` are taken."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_token_characters = max(map(len, tokenizer.get_vocab()))
        self.vocabulary = Vocabulary(tokenizer)

    @classmethod
    def load(cls, model_dir: str, *, trust_remote_code: bool, vocab_size: int | None = None) -> Tokenizer:
        """Import transformers and read the files, in seconds.

        `vocab_size` is the rows of the model's embedding, where known: the engine dies of an id past them.
        """
        tokenizer = load_tokenizer(model_dir, trust_remote_code=trust_remote_code)
        if tokenizer.is_fast:
            # Transformers would set these at the first call, but a fast tokenizer must not change while another thread
            # encodes ("Already borrowed").
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.encode_special_tokens = tokenizer.split_special_tokens
        known = max(tokenizer.get_vocab().values()) + 1  # len() is less where the ids have gaps
        return cls(tokenizer, known if vocab_size is None else min(known, vocab_size))

    @property
    def template_names(self) -> list[str]:
        """Names of the chat templates: one without a name is the default. Empty if there is none."""
        template = self._tokenizer.chat_template
        return sorted(template) if isinstance(template, dict) else ["default"] if template else []

    def encode(self, prompt: Prompt, *, param: str, max_tokens: int, keep: int | None = None) -> EncodedPrompt:
        """Return the prompt's ids, fewer than `max_tokens`, which prompt and answer share.

        `param` names the prompt's field. Of a longer prompt only the last `keep` tokens are used.

        Special tokens are as the reference adds them: to a text those that the tokenizer adds by default, to a chat
        those of its template and no others. Raises InvalidRequest.
        """
        match prompt:
            case TokenIds():
                ids = list(prompt.ids)
                if keep is not None and len(ids) > keep:
                    ids = ids[-keep:]
                self._validate_ids(ids, param, max_tokens)
                return EncodedPrompt(ids=ids, text=self.decode(ids))
            case Text():
                return self._encode(prompt.text, param, max_tokens, keep, add_special_tokens=True)
            case Chat():
                text = self._apply_template(prompt, param)
                return self._encode(text, param, max_tokens, keep, add_special_tokens=False)

    def save(self, model_dir: str, directory: str) -> None:
        """Write it to a directory, from which it loads at once if the model's own files had to be converted."""
        save_tokenizer(self._tokenizer, model_dir, directory)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _encode(
        self, text: str, param: str, max_tokens: int, keep: int | None, *, add_special_tokens: bool
    ) -> EncodedPrompt:
        if keep is None or keep >= max_tokens:
            ids = self._ids(text, param, max_tokens, add_special_tokens=add_special_tokens)
        else:
            # No more of a long text than surely has so many tokens: tokenizing it takes minutes.
            ids = self._tokens(text[-keep * self._max_token_characters * _MAX_COMPOSED :], add_special_tokens)
            if len(ids) > keep:
                ids = ids[-keep:]
                text = self.decode(ids)
        self._validate_ids(ids, param, max_tokens)
        return EncodedPrompt(ids=ids, text=text)

    def _ids(self, text: str, param: str, max_tokens: int, *, add_special_tokens: bool) -> list[int]:
        # A text that can't fit even if all tokens are the longest is refused first: tokenizing it takes minutes.
        max_characters = max_tokens * self._max_token_characters
        characters = len(text)
        if max_characters < characters <= max_characters * _MAX_COMPOSED and self._tokenizer.is_fast:
            normalizer = self._tokenizer.backend_tokenizer.normalizer
            # The normalized text is cut into tokens, and Unicode composition, for one, makes it shorter.
            characters = len(normalizer.normalize_str(text)) if normalizer else characters
        if characters > max_characters:
            message = (
                f"{param}: prompt has {characters} characters; the model holds {max_tokens} tokens,"
                f" {max_characters} characters at the very most"
            )
            raise InvalidRequest(message, param=param, code="context_length_exceeded")
        return self._tokens(text, add_special_tokens)

    def _tokens(self, text: str, add_special_tokens: bool) -> list[int]:
        # verbose=False: no warning past the tokenizer's own idea of the model's length, which is checked here.
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return ids

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

    def _apply_template(self, chat: Chat, param: str) -> str:
        sources = self._tokenizer.chat_template
        if not sources:
            message = f"{param}: the model has no chat template; send the prompt as text (inputs or prompt)"
            raise InvalidRequest(message, param=param, code="no_chat_template")
        if not isinstance(sources, dict):
            sources = {"default": sources}
        name = "tool_use" if chat.template.tools and "tool_use" in sources else "default"
        every_source = "\n".join(sources.values())
        reads = TemplateReads.of(sources.get(name, every_source))
        variables, messages = reads.variables(chat.template), reads.messages(chat, param)

        def render(messages: list[dict[str, Any]]) -> str:
            text: str = self._tokenizer.apply_chat_template(
                messages,
                tools=list(chat.template.tools) or None,
                documents=list(chat.template.documents) or None,
                tokenize=False,
                add_generation_prompt=chat.template.ending == "answer",
                continue_final_message=chat.template.ending == "continue",
                **variables,
            )
            return text

        try:
            text = render(messages)
            reads.check_shown(messages, param, render)
        except (MemoryError, InvalidRequest):
            raise
        except Exception as error:  # a template is a program: it can fail in any way
            reason = str(error)
            if not reason or reason not in every_source:  # only a sentence of the template's own quotes no message
                reason = type(error).__name__
                if chat.template.ending == "continue" and type(error) is ValueError:
                    reason = "it doesn't show the last message as it was written, so that it can't be continued"
        else:
            return text
        at = find_text_arguments(chat, param) or param
        raise InvalidRequest(f"{at}: the model's chat template refuses these messages: {reason}", param=at)
