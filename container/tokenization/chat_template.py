"""The model's chat template: a chat's messages to the text that is tokenized.

A caller's text stays text there. Control tokens that are in it are marked before the template is applied, with
transformers' own marks, so that tokenizing can tell them from those that the template writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from container.core import PART_SEPARATOR, Chat, PromptEnding
from container.errors import InvalidRequest
from container.tokenization.control_tokens import ControlTokens, any_of, roles_with_parts, template_source
from container.tokenization.template_reads import COMMON_ROLES, NEWER_ROLES, TemplateReads, find_text_arguments

_OWN_TEXTS = frozenset({"content", "reasoning_content", "reasoning", "thinking"})
"""Fields of an assistant's message that hold what a model wrote."""
_STANDARD_ROLES = COMMON_ROLES | {"tool", *NEWER_ROLES}


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedChat:
    text: str
    marked: str | None = None
    """The text with marks around the control tokens that it has of the caller; None if there are none."""


class ChatTemplate:
    """Shared by the server's worker threads: nothing of it changes."""

    def __init__(self, tokenizer: Any, tokens: ControlTokens, *, parses_control_tokens: bool = False) -> None:
        """`tokenizer` is one of transformers'. `parses_control_tokens`: those in a caller's text are tokens there,
        too."""
        from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

        self._tokenizer = tokenizer
        sources = tokenizer.chat_template or {}
        self._sources: dict[str, str] = sources if isinstance(sources, dict) else {"default": sources}
        self._every_source = template_source(tokenizer)
        self._roles_with_parts = roles_with_parts(tokenizer) if self._sources else frozenset()
        self._mark_in: Callable[[Any, re.Pattern[str]], Any] = mark_control_tokens
        self._encode_marked: Callable[[Any, str], list[int]] = encode_marked_chat
        tokens = ControlTokens() if parses_control_tokens else tokens
        self._token_words = {re.sub(r"^\W+|\W+$", "", name) for name in tokens.all}
        self._caller_tokens = any_of(tokens.all)
        self._hidden_tokens = any_of(tokens.all - tokens.markers)
        self._start, self._end = mark_control_tokens("-", re.compile("-")).split("-")

    def apply(self, chat: Chat, param: str) -> RenderedChat:
        """Return the text of a chat, the field `param`. Raises InvalidRequest."""
        if not self._sources:
            message = f"{param}: the model has no chat template; send the prompt as text (inputs or prompt)"
            raise InvalidRequest(message, param=param, code="no_chat_template")
        name = "tool_use" if chat.template.tools and "tool_use" in self._sources else "default"
        reads = TemplateReads.of(self._sources.get(name, self._every_source))
        variables, messages = reads.variables(chat.template), reads.messages(chat, param)
        self._refuse_tokens_as_roles(messages, reads, param)
        try:
            given = {
                "conversation": [self._with_parts(message) for message in messages],
                "tools": list(chat.template.tools) or None,
                "documents": list(chat.template.documents) or None,
                **variables,
            }
            marked = self._marked(given, is_continued=chat.template.ending == "continue")
            render = partial(self._render, chat.template.ending, marked)
            text = render(marked["conversation"])
            reads.check_shown(marked["conversation"], param, render)
        except (MemoryError, InvalidRequest):
            raise
        except Exception as error:  # a template is a program: it can fail in any way
            reason = str(error)
            # Only a sentence of the template's own quotes no message.
            if not reason or reason not in self._every_source:
                reason = type(error).__name__
                if chat.template.ending == "continue" and type(error) is ValueError:
                    reason = "it doesn't show the last message as it was written, so that it can't be continued"
        else:
            return RenderedChat(text=text) if marked is given else self._read_marks(text)
        at = find_text_arguments(chat, param) or param
        raise InvalidRequest(f"{at}: the model's chat template refuses these messages: {reason}", param=at)

    def _render(self, ending: PromptEnding, given: dict[str, Any], messages: list[dict[str, Any]]) -> str:
        text: str = self._tokenizer.apply_chat_template(
            **(given | {"conversation": messages}),
            tokenize=False,
            add_generation_prompt=ending == "answer",
            continue_final_message=ending == "continue",
        )
        return text

    def _read_marks(self, text: str) -> RenderedChat:
        for mark in (self._start, self._end):
            # A template that prints a list or an object escapes its marks, as Python or JSON does.
            for escaped in (repr(mark)[1:-1], json.dumps(mark)[1:-1]):
                text = text.replace(escaped, mark)
        plain = text.replace(self._start, "").replace(self._end, "")
        return RenderedChat(text=plain, marked=None if plain == text else text)

    def _refuse_tokens_as_roles(self, messages: list[dict[str, Any]], reads: TemplateReads, param: str) -> None:
        """Raise InvalidRequest for a role of which a template could make a control token: `<|` + `end` + `|>`."""
        for index, message in enumerate(messages):
            role = message["role"]
            if role in self._token_words and role not in _STANDARD_ROLES and not reads.knows_role(role):
                at = f"{param}[{index}].role"
                what = "is a control token's name, and none that the model's chat template knows"
                raise InvalidRequest(f"{at} {what}: give another", param=at)

    def count_marked(self, marked: str) -> int:
        """Return how many control tokens are marked."""
        return marked.count(self._start)

    def last_of(self, marked: str, count: int) -> str:
        """Return the end of a marked text that has the last `count` marked tokens."""
        _, *last = marked.rsplit(self._start, count)
        return "".join(self._start + piece for piece in last) if len(last) == count else marked

    def encode(self, marked: str) -> list[int]:
        """Return the ids of a marked text. Marked tokens are encoded as text, all others as themselves."""
        try:
            return self._encode_marked(self._tokenizer, marked)
        except ValueError:
            # The tokenizer makes the token even of plain text. A lone mark cuts a text in two.
            whole = re.compile(f"{self._start}(.)(.*?){self._end}", re.DOTALL)
            return self._encode_marked(self._tokenizer, whole.sub(rf"\1{self._start}\2", marked))

    def _with_parts(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a message with its text parts as the template takes them."""
        parts = message.get("content")
        if not isinstance(parts, list) or message["role"] in self._roles_with_parts:
            return message
        return message | {"content": PART_SEPARATOR.join(part["text"] for part in parts)}

    def _marked(self, inputs: dict[str, Any], *, is_continued: bool) -> dict[str, Any]:
        """Return the template's inputs with marks. Those without a control token in them are returned as they are."""
        messages = inputs["conversation"]
        # Two parts can make a token that neither has.
        contents = (message.get("content") for message in messages)
        joined = ("".join(part["text"] for part in content) for content in contents if isinstance(content, list))
        if not any(map(self._caller_tokens.search, chain(_texts(inputs), joined))):
            return inputs
        marked: dict[str, Any] = self._mark(inputs, self._caller_tokens)
        marked["conversation"] = [
            self._marked_message(message, is_continued=is_continued and index == len(messages) - 1)
            for index, message in enumerate(messages)
        ]
        return marked

    def _marked_message(self, message: dict[str, Any], *, is_continued: bool) -> dict[str, Any]:
        """Return a message with marks. In an assistant's texts markers are tokens, as the model wrote them; one that is
        continued is the caller's own beginning of an answer, and has no marks."""
        tokens = dict.fromkeys(message, self._caller_tokens)
        if message["role"] == "assistant":
            tokens |= dict.fromkeys(_OWN_TEXTS, any_of(()) if is_continued else self._hidden_tokens)
        marked = {name: self._mark(value, tokens[name]) for name, value in message.items()}
        if isinstance(marked.get("content"), list) and not is_continued:
            # A lone mark ends each part: it keeps two parts from making a token.
            marked["content"] = [part | {"text": part["text"] + self._end} for part in marked["content"]]
        return marked

    def _mark(self, value: Any, tokens: re.Pattern[str]) -> Any:
        """Mark the tokens in the strings of a JSON value. Transformers' own function leaves out an object's names."""
        if isinstance(value, Mapping):
            return {self._mark(name, tokens): self._mark(entry, tokens) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self._mark(entry, tokens) for entry in value]
        return self._mark_in(value, tokens)


def _texts(value: Any) -> Iterable[str]:
    """Yield the strings of a JSON value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield name
            yield from _texts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)
