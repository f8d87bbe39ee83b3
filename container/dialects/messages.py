"""Messages of a chat, as OpenAI's clients, agents and templates write them.

What a template alone can know passes with its message: roles of its own (`ipython`, `documents`) and fields of its own
(`reasoning_content`). What would be lost is refused by its name: images and other content that is not text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from container.core import PART_SEPARATOR, Chat, Template
from container.dialects.template_inputs import read_function_call, read_tool_calls
from container.dialects.wire import Flag, Wire, read, unknown_fields
from container.errors import InvalidRequest

ROLE = r"[A-Za-z][A-Za-z0-9_.-]{0,63}"
SPOKEN_TO = ("system", "developer", "user")
"""Roles that say something to the model, so that a message of theirs needs a content."""
CALLED = ("tool", "function")
"""Roles of results, which may be empty. `function` is OpenAI's older name."""
EXPECTED_CONTENT = "a string or a list of text parts"
_MEDIA = ("image", "image_url", "images", "video", "videos", "audios", "file", "files", "attachments")


class Message(Wire):
    role: str = Field(pattern=f"^{ROLE}$", description="a role of 1 to 64 letters, digits, _, . and -")
    content: Any = None
    name: str | None = Field(None, description="a string")
    tool_call_id: str | None = Field(None, description="a string")
    tool_calls: Any = None
    function_call: Any = None
    refusal: str | None = Field(None, description="a string")
    prefix: Flag = None
    """Mistral's and DeepSeek's name for a last message that is to be continued."""
    partial: Flag = None
    """Moonshot's name for the same."""

    is_open: ClassVar = True
    neutral: ClassVar = {"audio": ()} | {name: ([],) for name in _MEDIA}
    reasons: ClassVar = dict.fromkeys(("audio", *_MEDIA), "is content other than text, which is not supported")


class PartType(Wire):
    """Type of a content part, which decides its other fields and so is read before them."""

    type: Literal["text", "input_text", "output_text", "refusal"] = Field(
        "text", description='"text": other kinds of content are not supported'
    )


class TextPart(PartType):
    text: str = Field(description="a string")

    is_open: ClassVar = True


class RefusalPart(PartType):
    refusal: str = Field(description="a string")

    is_open: ClassVar = True


def read_messages(value: object, at: str, template: Template) -> Chat:
    """Read the messages of a chat, the field `at`. Raises InvalidRequest."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{at} must be a list of messages", param=at)
    if not value:
        raise InvalidRequest(f"{at} is empty; give at least one message", param=at)
    messages = []
    for index, entry in enumerate(value):
        path = f"{at}[{index}]"
        message = read(Message, entry, f"{path}.")
        messages.append(_read_message(message, unknown_fields(Message, entry), path))
        if continued := next((name for name in ("prefix", "partial") if getattr(message, name)), None):
            if index + 1 < len(value) or message.role != "assistant":
                path = f"{path}.{continued}"
                raise InvalidRequest(f"{path} goes with an assistant's last message alone: leave it out", param=path)
            template = replace(template, ending="continue")
    older_calls = (
        index for index, entry in enumerate(value) if not entry.get("tool_calls") and "tool_calls" in messages[index]
    )
    return Chat(messages=tuple(messages), template=template, older_calls=frozenset(older_calls))


def _read_message(message: Message, others: dict[str, Any], at: str) -> dict[str, Any]:
    """Return the message as a template takes it. `others` are the fields that only a template knows."""
    read_message: dict[str, Any] = {"role": message.role}
    if (content := _content(message, f"{at}.content")) is not None:
        read_message["content"] = content
    if message.name is not None:
        read_message["name"] = message.name
    if message.tool_call_id is not None:
        read_message["tool_call_id"] = message.tool_call_id
    calls = [] if message.tool_calls is None else read_tool_calls(message.tool_calls, f"{at}.tool_calls")
    field = "tool_calls"
    if not calls and message.function_call is not None:
        field = "function_call"
        calls = [read_function_call(message.function_call, f"{at}.function_call")]
    if calls:
        if message.role in (*SPOKEN_TO, *CALLED):
            path = f"{at}.{field}"
            raise InvalidRequest(f"{path} are the assistant's alone: leave them out", param=path)
        read_message["tool_calls"] = calls
    return read_message | others


def _content(message: Message, at: str) -> str | list[dict[str, Any]] | None:
    """Return the text, or text parts, if there is anything."""
    text: str | list[dict[str, Any]]
    if message.content is not None:
        text = read_content(message.content, at)
    elif message.role == "assistant" or message.role in CALLED:
        text = ""  # most templates can't add None to a string
    elif message.role in SPOKEN_TO:
        raise InvalidRequest(f"{at} must be {EXPECTED_CONTENT}", param=at)
    else:
        return None
    if message.refusal:  # what the assistant said instead of an answer
        if text:
            path = at.removesuffix("content") + "refusal"
            raise InvalidRequest(f"{path} beside a content is not supported: leave one of them out", param=path)
        return message.refusal
    return text


def read_content(value: object, at: str) -> str | list[dict[str, Any]]:
    """Read a text or a list of text parts, the field `at`. Raises InvalidRequest.

    Several parts stay parts, of text alone: some templates put them together in their own way.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidRequest(f"{at} must be {EXPECTED_CONTENT}", param=at)
    texts = [_part(part, f"{at}[{index}]") for index, part in enumerate(value)]
    return [{"type": "text", "text": text} for text in texts] if len(texts) > 1 else "".join(texts)


def joined(content: str | list[dict[str, Any]]) -> str:
    """Return a content as one text."""
    return content if isinstance(content, str) else PART_SEPARATOR.join(part["text"] for part in content)


def _part(part: object, at: str) -> str:
    """Return the text of one part. Fields beside it, such as `cache_control`, have no text."""
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        kind = read(PartType, {"type": part["type"]} if part.get("type") is not None else {}, f"{at}.")
        if kind.type == "refusal":
            return read(RefusalPart, part, f"{at}.").refusal
    return read(TextPart, part, f"{at}.").text
