"""Inputs of a chat template beside plain messages: tools, tool calls and variables, named as vLLM names them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from container.dialects.wire import FIELD_NAME, Flag, Wire, decode, read
from container.errors import InvalidRequest

MAX_TOOLS = 128
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
    type: Literal["function"] = Field(description='"function": other kinds of tools are not supported')
    function: Any = None


class ToolFunction(Wire):
    name: str = Field(min_length=1, description="a string of at least one character")
    description: str | None = Field(None, description="a string")
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema, an object")
    strict: Flag = None

    # Transformers writes a Python function's result schema under this name.
    ignored = frozenset({"return"})


class ToolCall(Wire):
    id: str | None = Field(None, description="a string")
    type: Literal["function"] = Field("function", description='"function": other kinds of tools are not supported')
    function: Any = None


class CalledFunction(Wire):
    name: str = Field(min_length=1, description="a string of at least one character")
    arguments: Any = None


def read_tools(value: object, at: str) -> tuple[dict[str, Any], ...]:
    """Read the tools of a chat, the field `at`. Raises InvalidRequest.

    Each is returned as it came, in the order of its fields: the template writes it out.
    """
    tools = _list(value, at)
    for index, tool in enumerate(tools):
        prefix = f"{at}[{index}]."
        read(ToolFunction, read(Tool, tool, prefix).function, f"{prefix}function.")
    return tuple(tools)


def read_tool_calls(value: object, at: str) -> list[dict[str, Any]]:
    """Read the tool calls of a message, the field `at`. Raises InvalidRequest."""
    calls = []
    for index, entry in enumerate(_list(value, at)):
        prefix = f"{at}[{index}]."
        call = read(ToolCall, entry, prefix)
        function = read(CalledFunction, call.function, f"{prefix}function.")
        arguments, path = function.arguments, f"{prefix}function.arguments"
        if arguments is None or arguments == "":
            arguments = {}
        elif isinstance(arguments, str):  # OpenAI sends a string of JSON, templates take the object
            arguments = decode(arguments.encode(), what=path, param=path)
        if not isinstance(arguments, dict):
            raise InvalidRequest(f"{path} must be a JSON object, or a string that holds one", param=path)
        named = {} if call.id is None else {"id": call.id}
        calls.append({**named, "type": call.type, "function": {"name": function.name, "arguments": arguments}})
    return calls


def read_variables(value: object, at: str) -> dict[str, Any]:
    """Read the template's own variables, the field `at`. Raises InvalidRequest."""
    if (
        not isinstance(value, dict)
        or len(value) > MAX_VARIABLES
        or not all(name.isascii() and name.isidentifier() and len(name) <= MAX_VARIABLE_LENGTH for name in value)
    ):
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
        values = given if isinstance(given, list) else [given]
        if not all(scalar is None or isinstance(scalar, str | int | float) for scalar in values):
            which = path if path != at else f"each of {at}"
            message = f"{which} must be a string, a number, true, false, null or a list of those"
            raise InvalidRequest(message, param=path)
    return value


def _list(value: object, at: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise InvalidRequest(f"{at} must be a list of at most {MAX_TOOLS} objects", param=at)
    return value
