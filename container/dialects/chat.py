"""Chats on the wire: messages, and what the model's chat template is given beside them.

They are OpenAI's and the Hugging Face pipeline's alike: a list of messages with role and content, tool calls included.
What else the template is given is named as vLLM names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field

from container.core import Chat, PromptEnding, Template
from container.dialects.fields import Flag
from container.dialects.wire import FIELD_NAME, Wire, decode, read
from container.errors import InvalidRequest

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_TOOLS = 128
MOST_VARIABLES = 64
LONGEST_VARIABLE = 64
RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Names that transformers' `apply_chat_template` and its template renderer keep for themselves."""


class TemplateOptions(Wire):
    """What a request may say to the chat template."""

    tools: Any = None
    chat_template_kwargs: Any = None
    add_generation_prompt: Flag = None
    continue_final_message: Flag = None

    neutral: ClassVar = {"chat_template": ()}
    refusals: ClassVar = {"chat_template": "is not taken from a request, as chat templates come with the model"}

    def template(self, prefix: str = "") -> Template:
        return Template(
            tools=_read_list(self.tools, f"{prefix}tools", _tool),
            variables=_variables(self.chat_template_kwargs, f"{prefix}chat_template_kwargs"),
            ending=self._ending(prefix),
        )

    def _ending(self, prefix: str) -> PromptEnding:
        if self.continue_final_message and self.add_generation_prompt:
            message = f"{prefix}continue_final_message and {prefix}add_generation_prompt exclude each other"
            raise InvalidRequest(f"{message}: give one of them", param=f"{prefix}continue_final_message")
        if self.continue_final_message:
            return "continue"
        return "nothing" if self.add_generation_prompt is False else "answer"


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description=f"one of {', '.join(ROLES)}")
    content: Any = None
    name: str | None = Field(None, description="a string")
    tool_call_id: str | None = Field(None, description="a string")
    tool_calls: Any = None

    # An OpenAI client sends these back with an assistant's message that it was given.
    neutral: ClassVar = {
        "refusal": (),
        "annotations": ([],),
        "audio": (),
        "function_call": (),
    }


class PartType(Wire):
    """Read before the rest, which is another for each type."""

    type: Literal["text"] = Field(description='"text": other kinds of content are not supported')


class TextPart(PartType):
    text: str = Field(description="a string")


class Tool(Wire):
    type: Literal["function"] = Field(description='"function": other kinds of tools are not supported')
    function: Any = None


class ToolFunction(Wire):
    name: str = Field(min_length=1, description="a string of at least one character")
    description: str | None = Field(None, description="a string")
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema, an object")
    strict: Flag = None

    # What transformers makes of a Python function has its result's schema, too.
    ignored: ClassVar = frozenset({"return"})


class ToolCall(Wire):
    id: str | None = Field(None, description="a string")
    type: Literal["function"] = Field("function", description='"function": other kinds of tools are not supported')
    function: Any = None


class CalledFunction(Wire):
    name: str = Field(min_length=1, description="a string of at least one character")
    arguments: Any = None


def read_chat(value: object, at: str, template: Template) -> Chat:
    if not isinstance(value, list):
        raise InvalidRequest(f"{at} must be a list of messages", param=at)
    if not value:
        raise InvalidRequest(f"{at} is empty; give at least one message", param=at)
    messages = tuple(_message(message, f"{at}[{index}]") for index, message in enumerate(value))
    return Chat(messages=messages, template=template)


def _message(value: object, at: str) -> dict[str, Any]:
    """A message as chat templates know it: `developer` is OpenAI's newer name for `system`."""
    message = read(Message, value, f"{at}.")
    role = "system" if message.role == "developer" else message.role
    content = _content(message.content, f"{at}.content", may_be_null=role == "assistant")
    tool_calls = _read_list(message.tool_calls, f"{at}.tool_calls", _tool_call)
    if tool_calls and role != "assistant":
        raise InvalidRequest(f"{at}.tool_calls are the assistant's alone: leave them out", param=f"{at}.tool_calls")
    extras = {"name": message.name, "tool_call_id": message.tool_call_id, "tool_calls": list(tool_calls) or None}
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


def _read_list(value: object, at: str, one: Callable[[Any, str], dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MOST_TOOLS:
        raise InvalidRequest(f"{at} must be a list of at most {MOST_TOOLS} objects", param=at)
    return tuple(one(entry, f"{at}[{index}].") for index, entry in enumerate(value))


def _tool(value: Any, prefix: str) -> dict[str, Any]:
    """As it came, in the order of its fields: the template writes it out."""
    tool = read(Tool, value, prefix)
    read(ToolFunction, tool.function, f"{prefix}function.")
    return dict(value)


def _tool_call(value: Any, prefix: str) -> dict[str, Any]:
    call = read(ToolCall, value, prefix)
    function = read(CalledFunction, call.function, f"{prefix}function.")
    arguments = _arguments(function.arguments, f"{prefix}function.arguments")
    named = {} if call.id is None else {"id": call.id}
    return {**named, "type": call.type, "function": {"name": function.name, "arguments": arguments}}


def _arguments(value: object, at: str) -> dict[str, Any]:
    """An object, which OpenAI sends as a string of JSON and templates take as it is."""
    if value is None or value == "":
        return {}
    arguments = decode(value.encode(), what=at, param=at) if isinstance(value, str) else value
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{at} must be a JSON object, or a string that holds one", param=at)
    return arguments


def _variables(value: object, at: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MOST_VARIABLES or not all(map(_is_variable, value)):
        raise InvalidRequest(
            f"{at} must be an object of at most {MOST_VARIABLES} template variables, each with a name of up to"
            f" {LONGEST_VARIABLE} letters, digits and underscores",
            param=at,
        )
    for name, given in value.items():
        path = f"{at}.{name}" if FIELD_NAME.fullmatch(name) else at
        if name in RESERVED:
            message = f"{path} is none of the template's own variables: leave it out"
            raise InvalidRequest(message, param=path, code="unsupported_parameter")
        if not all(map(_is_scalar, given if isinstance(given, list) else [given])):
            which = path if path != at else f"each of {at}"
            message = f"{which} must be a string, a number, true, false, null or a list of those"
            raise InvalidRequest(message, param=path)
    return value


def _is_variable(name: str) -> bool:
    return name.isascii() and name.isidentifier() and len(name) <= LONGEST_VARIABLE


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)
