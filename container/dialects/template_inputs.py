"""Inputs of a chat template beside the messages' texts: tools, tool calls, documents and the template's own variables.

It knows no dialect. The template shows tools as they came, and gets tool calls in the form that templates expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
from pydantic import Field

from container.dialects.wire import FIELD_NAME, Flag, Wire, read, unknown_fields
from container.errors import InvalidRequest

MAX_TOOLS = 1024
MAX_DOCUMENTS = 1024
MAX_VARIABLES = 64
MAX_VARIABLE_LENGTH = 64
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


class Tool(Wire):
    type: Literal["function"] = Field("function", description='"function": other kinds of tools are not supported')
    function: Any = None

    is_open: ClassVar = True


class ToolFunction(Wire):
    name: str = Field(min_length=1, description="a string of at least one character")
    description: str | None = Field(None, description="a string")
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema, an object")
    strict: Flag = None

    is_open: ClassVar = True


class ToolCall(Wire):
    id: str | None = Field(None, description="a string")
    type: Literal["function"] = Field("function", description='"function": other kinds of tools are not supported')
    function: Any = None

    is_open: ClassVar = True


class CalledFunction(Wire):
    name: str = Field(min_length=1, description="a string of at least one character")
    arguments: Any = None

    is_open: ClassVar = True


def read_tools(value: object, at: str) -> tuple[dict[str, Any], ...]:
    """Read the tools of a chat, the field `at`. Raises InvalidRequest.

    Each is returned as it came, in the order of its fields: the template writes it out.
    """
    tools = _list(value, at, MAX_TOOLS)
    for index, tool in enumerate(tools):
        prefix = f"{at}[{index}]."
        read(ToolFunction, read(Tool, tool, prefix).function, f"{prefix}function.")
    typed = {"type": "function"}
    return tuple(tool if tool.get("type") is not None else typed | tool | typed for tool in tools)


def read_functions(value: object, at: str) -> tuple[dict[str, Any], ...]:
    """Read tools in the form that OpenAI had before. Raises InvalidRequest."""
    functions = _list(value, at, MAX_TOOLS)
    for index, function in enumerate(functions):
        read(ToolFunction, function, f"{at}[{index}].")
    return tuple({"type": "function", "function": function} for function in functions)


def read_tool_calls(value: object, at: str) -> list[dict[str, Any]]:
    """Read the tool calls of a message, the field `at`. Raises InvalidRequest."""
    calls = []
    for index, entry in enumerate(_list(value, at, MAX_TOOLS)):
        prefix = f"{at}[{index}]."
        call = read(ToolCall, entry, prefix)
        function = read_called_function(call.function, f"{prefix}function")
        named = {} if call.id is None else {"id": call.id}
        calls.append({**named, "type": call.type, "function": function, **unknown_fields(ToolCall, entry)})
    return calls


def read_function_call(value: object, at: str) -> dict[str, Any]:
    """Read a tool call in the form that OpenAI had before. Raises InvalidRequest."""
    return {"type": "function", "function": read_called_function(value, at)}


def read_called_function(value: object, at: str) -> dict[str, Any]:
    """Read what was called, the field `at`. Raises InvalidRequest.

    OpenAI sends the arguments as a string of JSON, templates take the object. What a model wrote need not be JSON: then
    it stays text, as the model saw it.
    """
    function, others = read(CalledFunction, value, f"{at}."), unknown_fields(CalledFunction, _object(value))
    arguments = function.arguments
    if isinstance(arguments, str):
        try:
            decoded = msgspec.json.decode(arguments.encode()) if arguments.strip() else None
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            decoded = arguments
        if decoded is None or isinstance(decoded, dict):
            arguments = decoded
    if arguments is None or arguments == []:  # some languages write an empty object so
        arguments = {}
    if not isinstance(arguments, dict | str):
        path = f"{at}.arguments"
        raise InvalidRequest(f"{path} must be a JSON object, or a string that holds one", param=path)
    return {"name": function.name, "arguments": arguments, **others}


def read_documents(value: object, at: str) -> tuple[dict[str, Any], ...]:
    """Read the documents that a template shows, the field `at`. Raises InvalidRequest."""
    documents = _list(value, at, MAX_DOCUMENTS)
    for index, document in enumerate(documents):
        if not isinstance(document, dict):
            raise InvalidRequest(f"{at}[{index}] must be a JSON object", param=f"{at}[{index}]")
    return tuple(documents)


def read_variables(value: object, at: str) -> dict[str, Any]:
    """Read the template's own variables, the field `at`. Raises InvalidRequest."""
    if not isinstance(value, dict) or len(value) > MAX_VARIABLES or not all(map(is_variable_name, value)):
        raise InvalidRequest(
            f"{at} must be an object of at most {MAX_VARIABLES} template variables, each with a name of up to"
            f" {MAX_VARIABLE_LENGTH} letters, digits and underscores",
            param=at,
        )
    for name, given in value.items():
        path = f"{at}.{name}" if FIELD_NAME.fullmatch(name) else at
        if name in RESERVED:
            message = f"{path} is not one of the template's own variables: leave it out"
            raise InvalidRequest(message, param=path, code="unsupported_parameter")
        if not is_variable_value(given):
            which = path if path != at else f"each of {at}"
            message = f"{which} must be a string, a number, true, false, null or a list of those"
            raise InvalidRequest(message, param=path)
    return value


def may_be_variables(fields: Mapping[str, Any]) -> bool:
    """Whether unknown fields of a request can be variables of the template, to which they then are given.

    The model's special tokens, which templates read as well, are none.
    """
    return len(fields) <= MAX_VARIABLES and all(
        is_variable_name(name)
        and FIELD_NAME.fullmatch(name)
        and name not in RESERVED
        and not name.endswith("_token")
        and is_variable_value(given)
        for name, given in fields.items()
    )


def is_variable_name(name: str) -> bool:
    return name.isascii() and name.isidentifier() and len(name) <= MAX_VARIABLE_LENGTH


def is_variable_value(value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(scalar is None or isinstance(scalar, str | int | float) for scalar in values)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object, at: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise InvalidRequest(f"{at} must be a list of at most {most} objects", param=at)
    return value
