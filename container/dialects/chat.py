"""Chats: OpenAI's chat completions, and the messages that the Hugging Face dialect takes as well.

Fields are as OpenAI's API reference has them and its client reads them. Extensions are named as vLLM names them:
`top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `ignore_eos`, `stop_token_ids`, `chat_template_kwargs`,
`add_generation_prompt`, `continue_final_message`. Differences: without a limit an answer is as long as the server
allows; every choice has its `seed`; tools are the template's to show and their calls stay in the text, as the model
writes them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct
from pydantic import AfterValidator, Field

from container.core import Call, Chat, FinishReason, Item, Result, Template, TokenLogprob
from container.dialects.encoding import encode
from container.dialects.template_inputs import read_tool_calls, read_tools, read_variables
from container.dialects.wire import (
    MAX_COUNT,
    Choices,
    Flag,
    LogitBias,
    Logprobs,
    MinNewTokens,
    NewTokens,
    SamplingOptions,
    StopTokenIds,
    Wire,
    read,
)
from container.errors import InvalidRequest

ROLES = ("system", "developer", "user", "assistant", "tool")
OTHER_DIALECT = "is another dialect's"

Temperature = Annotated[float | None, Field(ge=0, le=2, description="a number from 0 to 2")]
TopK = Annotated[
    int | None,
    Field(ge=-1, le=MAX_COUNT, description="an integer of -1 (off) or more"),
    AfterValidator(lambda top_k: 0 if top_k == -1 else top_k),
]
Logprob = Annotated[float, Meta(le=0)]
Count = Annotated[int, Meta(ge=0)]


class OpenAIOptions(SamplingOptions):
    """Options of OpenAI's requests of both kinds."""

    model: str | None = Field(None, description="a string")
    max_tokens: NewTokens = None
    temperature: Temperature = None
    top_k: TopK = None
    n: Choices = None
    logit_bias: LogitBias = None
    min_tokens: MinNewTokens = None
    stop_token_ids: StopTokenIds = None

    ignored: ClassVar = frozenset(
        {
            "user",
            "metadata",
            "store",
            "service_tier",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_retention",
        }
    )
    neutral: ClassVar = {"stream": (False,), "stream_options": ()}
    reasons: ClassVar = {"stream": "must be false, as asynchronous inference refuses answers sent in chunks"}


class TemplateOptions(Wire):
    """Options of a request for the chat template."""

    tools: Any = None
    chat_template_kwargs: Any = None
    add_generation_prompt: Flag = None
    continue_final_message: Flag = None

    neutral: ClassVar = {"chat_template": ()}
    reasons: ClassVar = {"chat_template": "is not taken from a request, as chat templates come with the model"}

    def template(self, prefix: str = "") -> Template:
        """Return what the chat template is given beside the messages. Raises InvalidRequest."""
        variables = self.chat_template_kwargs
        template = Template(
            tools=() if self.tools is None else read_tools(self.tools, f"{prefix}tools"),
            variables={} if variables is None else read_variables(variables, f"{prefix}chat_template_kwargs"),
            ending="answer" if self.add_generation_prompt is not False else "nothing",
        )
        if not self.continue_final_message:
            return template
        if self.add_generation_prompt:
            message = f"{prefix}continue_final_message and {prefix}add_generation_prompt exclude each other"
            raise InvalidRequest(f"{message}: give one of them", param=f"{prefix}continue_final_message")
        return replace(template, ending="continue")


class ChatRequest(OpenAIOptions, TemplateOptions):
    messages: Any = Field(description="a list of messages")
    max_completion_tokens: NewTokens = None
    logprobs: Flag = None
    top_logprobs: Logprobs = None
    tool_choice: Literal["none", "auto"] | None = Field(None, description='"none" or "auto"')
    parallel_tool_calls: Flag = None

    neutral: ClassVar = {
        **OpenAIOptions.neutral,
        **TemplateOptions.neutral,
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": (),
        "verbosity": (),
        "web_search_options": (),
        "inputs": (),
        "prompt": (),
    }
    reasons: ClassVar = {
        **OpenAIOptions.reasons,
        **TemplateOptions.reasons,
        "inputs": OTHER_DIALECT,
        "prompt": OTHER_DIALECT,
    }


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
    """Type of a content part, which decides its other fields and so is read before them."""

    type: Literal["text"] = Field(description='"text": other kinds of content are not supported')


class TextPart(PartType):
    text: str = Field(description="a string")


class Usage(Struct, forbid_unknown_fields=True):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class ChatTopLogprob(Struct, forbid_unknown_fields=True):
    token: str
    logprob: Logprob
    bytes: list[int] | None


class ChatToken(ChatTopLogprob):
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(Struct, forbid_unknown_fields=True):
    content: list[ChatToken]
    refusal: None


class ChatMessage(Struct, forbid_unknown_fields=True):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Struct, forbid_unknown_fields=True):
    index: Count
    message: ChatMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None
    seed: Annotated[int | None, Meta(description="send it again for the same text; null where the choice was greedy")]


class ChatCompletion(Struct, forbid_unknown_fields=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: Annotated[list[ChatChoice], Meta(min_length=1)]
    usage: Usage


def read_chat(document: object) -> Call:
    """Read a request for a chat completion. Raises InvalidRequest."""
    request = read(ChatRequest, document)
    # `max_completion_tokens` is the newer name of `max_tokens`.
    limit_name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    limit = getattr(request, limit_name)
    if request.max_tokens is not None and request.max_tokens != limit:
        message = "max_tokens and max_completion_tokens mean the same and differ: give one of them"
        raise InvalidRequest(message, param="max_completion_tokens")
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: give it with true", param="top_logprobs")
    parameters = request.parameters(
        max_new_tokens=limit,
        min_new_tokens=request.min_tokens or 0,
        logprobs=request.top_logprobs or 0 if request.logprobs else None,
    )
    template = request.template()
    if request.tool_choice == "none":
        template = replace(template, tools=())
    elif template.tools and request.parallel_tool_calls is False:
        message = "parallel_tool_calls is not supported yet: leave it out or give true"
        raise InvalidRequest(message, param="parallel_tool_calls", code="unsupported_parameter")
    item = Item(
        prompt=read_messages(request.messages, "messages", template),
        parameters=parameters,
        sample_by_default=True,
        param="messages",
        names={"max_new_tokens": limit_name, "min_new_tokens": "min_tokens"},
    )
    return Call(items=(item,), render=partial(_render, request))


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
        read_message: dict[str, Any] = {
            "role": "system" if message.role == "developer" else message.role,  # OpenAI's newer name for it
            "content": _content(message, f"{path}.content"),
        }
        if message.name is not None:
            read_message["name"] = message.name
        if message.tool_call_id is not None:
            read_message["tool_call_id"] = message.tool_call_id
        if message.tool_calls is not None and (calls := read_tool_calls(message.tool_calls, f"{path}.tool_calls")):
            if message.role != "assistant":
                path = f"{path}.tool_calls"
                raise InvalidRequest(f"{path} are the assistant's alone: leave them out", param=path)
            read_message["tool_calls"] = calls
        messages.append(read_message)
    return Chat(messages=tuple(messages), template=template)


def _content(message: Message, at: str) -> str:
    """Return the text. Parts are joined without anything between them, so that no text is made up."""
    match message.content:
        case str():
            return message.content
        case list():
            texts = []
            for index, part in enumerate(message.content):
                if isinstance(part, dict) and "type" in part:
                    read(PartType, {"type": part["type"]}, f"{at}[{index}].")
                texts.append(read(TextPart, part, f"{at}[{index}].").text)
            return "".join(texts)
        case None if message.role == "assistant":
            return ""  # most templates can't add None to a string
    raise InvalidRequest(f"{at} must be a string or a list of text parts", param=at)


def _render(request: ChatRequest, results: Sequence[Result], model: str) -> bytes:
    choices = [
        ChatChoice(
            index=index,
            message=ChatMessage("assistant", completion.text, None),
            finish_reason=completion.finish_reason,
            logprobs=None
            if completion.logprobs is None
            else ChatLogprobs(list(map(_token, completion.logprobs)), None),
            seed=completion.seed,
        )
        for index, completion in enumerate(completion for result in results for completion in result.completions)
    ]
    answer = ChatCompletion(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        object="chat.completion",
        created=int(time.time()),
        model=request.model or model,
        choices=choices,
        usage=usage(results),
    )
    return encode(answer)


def _token(token: TokenLogprob) -> ChatToken:
    top = [ChatTopLogprob(likely.text, likely.logprob, _bytes(likely)) for likely in token.top]
    return ChatToken(token.text, token.logprob, _bytes(token), top)


def _bytes(token: TokenLogprob) -> list[int] | None:
    return None if token.utf8 is None else list(token.utf8)


def usage(results: Sequence[Result]) -> Usage:
    """Count the tokens of an answer: each prompt once, and every choice."""
    prompt_tokens = sum(result.prompt_tokens for result in results)
    completion_tokens = sum(len(completion.token_ids) for result in results for completion in result.completions)
    return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)
