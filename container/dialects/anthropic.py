"""Anthropic's messages, as its message batches have them, and Bedrock's for its models: `params`, and the message.

Fields are as https://docs.anthropic.com/en/api/creating-message-batches has them. Text only: tools, thinking and other
blocks are refused by name. A last message of the assistant is continued, and turns of the same role are one, as there.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar, Literal

from msgspec import UNSET, Raw, Struct, UnsetType
from pydantic import Field

from container.core import (
    PART_SEPARATOR,
    Call,
    Chat,
    DeadlineReason,
    FinishReason,
    Item,
    Parameters,
    PromptEnding,
    Result,
    Template,
)
from container.dialects.encoding import encode
from container.dialects.messages import joined, read_content, read_messages
from container.dialects.wire import NewTokens, Stop, Temperature, TopK, TopP, Wire, read, told
from container.errors import DeadlineExceeded, RequestError

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "deadline"]
STOP_REASONS: dict[FinishReason, StopReason] = {"stop": "end_turn", "length": "max_tokens", "deadline": "deadline"}
ERROR_TYPES = {400: "invalid_request_error", 413: "request_too_large", 503: "overloaded_error"}
"""Anthropic's types of errors by status; those of other statuses are `api_error`."""


class MessageParams(Wire):
    model: str | None = Field(None, description="a string")
    messages: Any = Field(description="a list of messages")
    max_tokens: NewTokens = None
    system: Any = None
    stop_sequences: Stop = None
    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None

    ignored: ClassVar = frozenset(
        {"anthropic_version", "metadata", "service_tier", "cache_control", "inference_geo", "user_profile_id"}
    )
    neutral: ClassVar = {
        "stream": (False,),
        "tools": ([],),
        "tool_choice": ({"type": "auto"}, {"type": "none"}),
        "thinking": ({"type": "disabled"},),
        "container": (),
        "mcp_servers": ([],),
        "output_config": ({},),
        "output_format": (),
        "context_management": (),
    }
    reasons: ClassVar = {"stream": "must be false, as a batch's answers are whole"}


class AnthropicUsage(Struct, forbid_unknown_fields=True):
    input_tokens: int
    output_tokens: int


class TextBlock(Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class AnthropicMessage(Struct, forbid_unknown_fields=True):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock]
    stop_reason: StopReason
    stop_sequence: str | None
    usage: AnthropicUsage
    deadline: bool | UnsetType = UNSET


class Succeeded(Struct, forbid_unknown_fields=True, tag_field="type", tag="succeeded"):
    message: Raw


class AnthropicError(Struct, forbid_unknown_fields=True):
    type: str
    message: str


class AnthropicErrorBody(Struct, forbid_unknown_fields=True):
    type: Literal["error"]
    error: AnthropicError


class Errored(Struct, forbid_unknown_fields=True, tag_field="type", tag="errored"):
    error: AnthropicErrorBody


class Expired(Struct, tag_field="type", tag="expired"):
    """The deadline left no time for the line, which is to be sent again."""


class ResultLine(Struct, forbid_unknown_fields=True):
    custom_id: str | None
    result: Succeeded | Errored | Expired


def read_params(document: object) -> Call:
    """Read the `params` of a line. Raises InvalidRequest."""
    params = read(MessageParams, document)
    messages = _turns(read_messages(params.messages, "messages", Template()).messages)
    ending: PromptEnding = "continue" if messages[-1]["role"] == "assistant" else "answer"
    if params.system is not None and (system := read_content(params.system, "system")):
        messages.insert(0, {"role": "system", "content": system})
    parameters = Parameters(
        max_new_tokens=params.max_tokens,
        stop=params.stop_sequences or (),
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
    )
    item = Item(
        prompt=Chat(messages=tuple(messages), template=Template(ending=ending)),
        parameters=parameters,
        sample_by_default=True,
        param="messages",
        names={"max_new_tokens": "max_tokens"},
    )
    return Call(items=(item,), render=partial(_render, params))


def failed(error: RequestError) -> Errored | Expired:
    """Return the result of a line that failed. One for which the deadline left no time is to be sent again."""
    if error.status == DeadlineExceeded.status:
        return Expired()
    kind = ERROR_TYPES.get(error.status, "api_error")
    return Errored(AnthropicErrorBody("error", AnthropicError(kind, error.message)))


def _turns(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join neighbouring messages of one role, as they are one turn of several blocks."""
    turns: list[dict[str, Any]] = []
    for role, group in groupby(messages, key=itemgetter("role")):
        neighbours = list(group)
        if role in ("user", "assistant"):
            text = PART_SEPARATOR.join(joined(turn["content"]) for turn in neighbours)
            neighbours = [neighbours[0] | {"content": text}]
        turns += neighbours
    return turns


def _render(
    params: MessageParams, results: Sequence[Result], model: str, deadline_reason: DeadlineReason = "deadline"
) -> bytes:
    (result,) = results
    (completion,) = result.completions
    reason, is_cut = told(completion, deadline_reason)
    stop_reason = STOP_REASONS[reason] if completion.stop is None else "stop_sequence"
    message = AnthropicMessage(
        id=f"msg_{secrets.token_hex(12)}",
        type="message",
        role="assistant",
        model=params.model or model,
        content=[TextBlock("text", completion.text)],
        stop_reason=stop_reason,
        stop_sequence=completion.stop,
        usage=AnthropicUsage(result.prompt_tokens, len(completion.token_ids)),
        deadline=is_cut,
    )
    return encode(message)
