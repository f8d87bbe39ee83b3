"""Prompts on the wire: texts, chats and token ids, and lists of them.

A string is a text. Chats are OpenAI's and the Hugging Face pipeline's alike: a list of messages with role and content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from ..errors import InvalidRequest
from ..generation import Chat, Prompt, Text, TokenIds
from .wire import Wire, read

MOST_PROMPTS = 10_000
"""Prompts in one document, whose results are all held until the last. JSON lines have no such bound."""

ROLES = ("system", "developer", "user", "assistant", "tool")


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description=f"one of {', '.join(ROLES)}")
    content: Any = None
    name: str | None = Field(None, description="a string")
    tool_call_id: str | None = Field(None, description="a string")

    # An OpenAI client sends these back with an assistant's message that it was given.
    neutral: ClassVar = {
        "refusal": (),
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "tool_calls": ([],),
    }


class PartType(Wire):
    """Read before the rest, which is another for each type."""

    type: Literal["text"] = Field(description='"text": other kinds of content are not supported')


class TextPart(PartType):
    text: str = Field(description="a string")


def read_text(value: object, at: str) -> Text:
    if not isinstance(value, str):
        raise InvalidRequest(f"{at} must be a string", param=at)
    if not value:
        raise InvalidRequest(f"{at} is empty; give at least one character", param=at)
    return Text(text=value)


def read_chat(value: object, at: str) -> Chat:
    if not isinstance(value, list):
        raise InvalidRequest(f"{at} must be a list of messages", param=at)
    if not value:
        raise InvalidRequest(f"{at} is empty; give at least one message", param=at)
    return Chat(messages=tuple(_message(message, f"{at}[{index}]") for index, message in enumerate(value)))


def read_token_ids(value: object, at: str) -> TokenIds:
    """The ids' upper bound is the tokenizer's to check."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{at} must be a list of token ids", param=at)
    if not value:
        raise InvalidRequest(f"{at} is empty; give at least one token id", param=at)
    for index, token_id in enumerate(value):
        if type(token_id) is not int or token_id < 0:  # a bool is an int
            raise InvalidRequest(f"{at}[{index}] must be a token id, an integer of 0 or more", param=f"{at}[{index}]")
    return TokenIds(ids=tuple(value))


def read_each(value: Sequence[Any], at: str, one: Callable[[object, str], Prompt]) -> Iterator[tuple[str, Prompt]]:
    """Each prompt of a list with its path."""
    if len(value) > MOST_PROMPTS:
        message = f"{at} has {len(value)} prompts; one document holds at most {MOST_PROMPTS}, send more as JSON lines"
        raise InvalidRequest(message, param=at)
    for index, prompt in enumerate(value):
        path = f"{at}[{index}]"
        yield path, one(prompt, path)


def _message(value: object, at: str) -> dict[str, Any]:
    """A message as chat templates know it: `developer` is OpenAI's newer name for `system`."""
    message = read(Message, value, f"{at}.")
    role = "system" if message.role == "developer" else message.role
    content = _content(message.content, f"{at}.content", may_be_null=role == "assistant")
    extras = {"name": message.name, "tool_call_id": message.tool_call_id}
    return {"role": role, "content": content} | {name: extra for name, extra in extras.items() if extra is not None}


def _content(value: object, at: str, *, may_be_null: bool) -> str:
    """Parts are joined without anything between them, so that no text is made up."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_part(part, f"{at}[{index}].") for index, part in enumerate(value))
    if value is None and may_be_null:
        return ""  # most templates can't add None to a string
    raise InvalidRequest(f"{at} must be a string or a list of text parts", param=at)


def _part(value: object, prefix: str) -> str:
    if isinstance(value, dict) and "type" in value:
        read(PartType, {"type": value["type"]}, prefix)
    return read(TextPart, value, prefix).text
