"""The model's tokenizer, in the edge process: prompts to token ids and token ids to text.

The edge must never import torch, which costs seconds and hundreds of megabytes; transformers' tokenizers do without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from container.core import Chat, Prompt, Text, TokenIds
from container.errors import InvalidRequest
from container.tokenization.vocabulary import Vocabulary

_MOST_COMPOSED = 4
"""Characters that Unicode composition makes one of, at most. A text beyond this need not be normalized, which takes
many times its size in memory, to know that it is too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    ids: list[int]
    text: str
    """The prompt as the model sees it, chat template applied."""


class Tokenizer:
    """Shared by the edge's worker threads: nothing of it changes after `load`."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        """`tokenizer` is one of transformers'; ids below `vocab_size` are taken."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self.vocabulary = Vocabulary(tokenizer)

    @classmethod
    def load(cls, model_dir: str, *, trust_remote_code: bool, vocab_size: int | None = None) -> Tokenizer:
        """Imports transformers and reads the files, in seconds.

        `vocab_size` is the rows of the model's embedding, where known: the engine dies of an id past them.
        """
        with _no_torch():
            from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(
            model_dir, trust_remote_code=trust_remote_code, local_files_only=True
        )
        _settle(tokenizer)
        known = max(tokenizer.get_vocab().values()) + 1  # len() is less where the ids have gaps
        return cls(tokenizer, known if vocab_size is None else min(known, vocab_size))

    def encode(self, prompt: Prompt, *, param: str, max_tokens: int, tools_param: str = "tools") -> EncodedPrompt:
        """The prompt's ids, fewer than `max_tokens`, which prompt and answer share. `param` names the prompt's field,
        `tools_param` that of a chat's tools.

        Special tokens are as the reference adds them: to a text those that the tokenizer adds by default, to a chat
        those of its template and no others. Raises InvalidRequest.
        """
        match prompt:
            case TokenIds():
                ids = list(prompt.ids)
                self._check(ids, param, max_tokens)
                return EncodedPrompt(ids=ids, text=self.decode(ids))
            case Text():
                ids = self._ids(prompt.text, param, max_tokens, add_special_tokens=True)
                return EncodedPrompt(ids=ids, text=prompt.text)
            case Chat():
                text = self._apply_template(prompt, param, tools_param)
                ids = self._ids(text, param, max_tokens, add_special_tokens=False)
                return EncodedPrompt(ids=ids, text=text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _ids(self, text: str, param: str, max_tokens: int, *, add_special_tokens: bool) -> list[int]:
        self._check_characters(text, param, max_tokens)
        # verbose=False: no warning past the tokenizer's own idea of the model's length, which is checked here.
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        self._check(ids, param, max_tokens)
        return ids

    def _check_characters(self, text: str, param: str, max_tokens: int) -> None:
        """Refuses what can't fit even at the longest token's length, as tokenizing it would take minutes."""
        most = max_tokens * self._longest_token
        if len(text) <= most:
            return
        characters = len(text)
        if characters <= most * _MOST_COMPOSED:
            characters = len(self._normalized(text))
        if characters > most:
            message = (
                f"{param}: prompt has {characters} characters; the model holds {max_tokens} tokens,"
                f" {most} characters at the very most"
            )
            raise InvalidRequest(message, param=param, code="context_length_exceeded")

    def _normalized(self, text: str) -> str:
        """What is cut into tokens: Unicode composition, for one, makes a text shorter."""
        normalizer = self._tokenizer.backend_tokenizer.normalizer if self._tokenizer.is_fast else None
        normalized: str = normalizer.normalize_str(text) if normalizer else text
        return normalized

    def _check(self, ids: list[int], param: str, max_tokens: int) -> None:
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

    def _apply_template(self, chat: Chat, param: str, tools_param: str) -> str:
        template = self._tokenizer.chat_template
        if not template:
            message = f"{param}: the model has no chat template; send the prompt as text (inputs or prompt)"
            raise InvalidRequest(message, param=param, code="no_chat_template")
        source = "\n".join(template.values()) if isinstance(template, dict) else template
        _check_tools(chat, source, param, tools_param)
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(chat.messages),
                tools=list(chat.template.tools) or None,
                tokenize=False,
                add_generation_prompt=chat.template.ending == "answer",
                continue_final_message=chat.template.ending == "continue",
                **chat.template.variables,
            )
        except MemoryError:
            raise
        except Exception as error:  # a template is a program: it can fail in any way
            reason = _told(error, chat, source)
        else:
            return text
        raise InvalidRequest(f"{param}: the model's chat template refuses these messages: {reason}", param=param)


def _check_tools(chat: Chat, source: str, param: str, tools_param: str) -> None:
    """Refuses what the template would pass over in silence."""
    if chat.template.tools and "tools" not in source:
        message = f"{tools_param}: the model's chat template takes no tools; leave them out"
        raise InvalidRequest(message, param=tools_param, code="unsupported_parameter")
    calls = next((index for index, message in enumerate(chat.messages) if "tool_calls" in message), None)
    if calls is not None and "tool_calls" not in source:
        at = f"{param}[{calls}].tool_calls"
        message = f"{at}: the model's chat template takes no tool calls; leave them out"
        raise InvalidRequest(message, param=at, code="unsupported_parameter")


def _told(error: Exception, chat: Chat, source: str) -> str:
    """The template's own reason, where it is a sentence of the template: any other could hold a message's content."""
    sentence = str(error)
    if sentence and sentence in source:
        return sentence
    if chat.template.ending == "continue" and type(error) is ValueError:
        return "it doesn't show the last one as it was written, so that it can't be continued"
    return type(error).__name__


def _settle(tokenizer: Any) -> None:
    """Sets what transformers would set at the first call, as a fast tokenizer must not change while another thread
    encodes ("Already borrowed")."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.encode_special_tokens = tokenizer.split_special_tokens


@contextmanager
def _no_torch() -> Iterator[None]:
    """While transformers is imported: it finds no torch, unless this process has it already, and doesn't advise it."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # what import takes for "not there"
    silent = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(silent)
    os.environ[silent] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[silent]
        else:
            os.environ[silent] = before
