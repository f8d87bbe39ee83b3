"""Chats: OpenAI's chat completions, and what their options share with its completions.

Fields are as OpenAI's API reference has them and its client reads them. Extensions are named as vLLM names them:
`top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `ignore_eos`, `stop_token_ids`, `truncate_prompt_tokens`,
`chat_template_kwargs`, `documents`, `add_generation_prompt`, `continue_final_message`, `request_id`, and what all
dialects take of special tokens. Differences:
without a limit an answer is as long as the server allows; every choice has its `seed`; tools are the template's to show
and their calls stay in the text, as the model writes them; a field that only the model's template knows reaches it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from pydantic import Field

from container.core import Call, DeadlineReason, FinishReason, Item, Result, Template, TokenLogprob
from container.dialects.encoding import encode
from container.dialects.messages import read_messages
from container.dialects.template_inputs import (
    may_be_variables,
    read_documents,
    read_functions,
    read_tools,
    read_variables,
)
from container.dialects.wire import (
    Choices,
    DeadlineFinishReason,
    Flag,
    LogitBias,
    Logprobs,
    MinNewTokens,
    NewTokens,
    SamplingOptions,
    StopTokenIds,
    Truncation,
    Wire,
    read,
    told,
    unknown_error,
    unknown_fields,
)
from container.errors import InvalidRequest

OTHER_DIALECT = "is another dialect's"

Logprob = Annotated[float, Meta(le=0)]
Count = Annotated[int, Meta(ge=0)]
CutMark = Annotated[
    bool | UnsetType, Meta(description="true where the deadline cut the text and its finish reason doesn't say so")
]


class OpenAIOptions(SamplingOptions):
    """Options of OpenAI's requests of both kinds."""

    model: str | None = Field(None, description="a string")
    max_tokens: NewTokens = None
    n: Choices = None
    logit_bias: LogitBias = None
    min_tokens: MinNewTokens = None
    stop_token_ids: StopTokenIds = None
    truncate_prompt_tokens: Truncation = None
    deadline_finish_reason: DeadlineFinishReason = None
    request_id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9._:-]{1,128}$", description="1 to 128 letters, digits, ., _, : and -"
    )

    ignored: ClassVar = frozenset(
        {
            "user",
            "metadata",
            "store",
            "service_tier",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "stream_options",  # a whole answer always has its usage
            "priority",
            "cache_salt",
        }
    )
    neutral: ClassVar = {
        "stream": (False,),
        "use_beam_search": (False,),
        "early_stopping": (False,),
        "length_penalty": (1,),
        "allowed_token_ids": ([],),
        "bad_words": ([],),
        "prompt_logprobs": (),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
        "structured_outputs": ({},),
        "guided_json": (),
        "guided_regex": (),
        "guided_choice": (),
        "guided_grammar": (),
        "logits_processors": ([],),
        "kv_transfer_params": ({},),
        "vllm_xargs": ({},),
    }
    reasons: ClassVar = {"stream": "must be false, as asynchronous inference refuses answers sent in chunks"}


class TemplateOptions(Wire):
    """Options of a request for the chat template."""

    tools: Any = None
    documents: Any = None
    chat_template_kwargs: Any = None
    add_generation_prompt: Flag = None
    continue_final_message: Flag = None

    neutral: ClassVar = {"chat_template": ()}
    reasons: ClassVar = {"chat_template": "is not taken from a request, as chat templates come with the model"}

    def template(self, prefix: str = "") -> Template:
        """Return what the chat template is given beside the messages. Raises InvalidRequest."""
        variables, documents = self.chat_template_kwargs, self.documents
        template = Template(
            tools=() if self.tools is None else read_tools(self.tools, f"{prefix}tools"),
            documents=() if documents is None else read_documents(documents, f"{prefix}documents"),
            variables={} if variables is None else read_variables(variables, f"{prefix}chat_template_kwargs"),
            ending="answer" if self.add_generation_prompt is not False else "nothing",
            prefix=prefix,
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
    functions: Any = None
    reasoning_effort: str | None = Field(None, max_length=64, description="a string of at most 64 characters")
    verbosity: str | None = Field(None, max_length=64, description="a string of at most 64 characters")

    is_open: ClassVar = True
    ignored: ClassVar = OpenAIOptions.ignored | {"prediction"}
    neutral: ClassVar = {
        **OpenAIOptions.neutral,
        **TemplateOptions.neutral,
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "moderation": (),
        "web_search_options": (),
        "include_reasoning": (True,),
        "mm_processor_kwargs": ({},),
        "echo": (False,),
        "inputs": (),
        "prompt": (),
    }
    reasons: ClassVar = {
        **OpenAIOptions.reasons,
        **TemplateOptions.reasons,
        "inputs": OTHER_DIALECT,
        "prompt": OTHER_DIALECT,
    }


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
    deadline: CutMark = UNSET


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
    assert isinstance(document, dict), "it has been read"
    item = Item(
        prompt=read_messages(request.messages, "messages", _template(request, document)),
        parameters=parameters,
        sample_by_default=True,
        param="messages",
        names={"max_new_tokens": limit_name, "min_new_tokens": "min_tokens"},
    )
    return Call(items=(item,), render=partial(_render, request))


def _template(request: ChatRequest, document: Mapping[str, Any]) -> Template:
    """Return what the template is given, with the fields that only the template knows. Raises InvalidRequest."""
    template, unknown = request.template(), unknown_fields(ChatRequest, document)
    if request.functions is not None and (functions := read_functions(request.functions, "functions")):
        if template.tools:
            raise InvalidRequest("functions are the older name of tools: give one of them", param="functions")
        template = replace(template, tools=functions, tools_name="functions")
    if request.tool_choice == "none" or document.get("function_call") == "none":
        template = replace(template, tools=())
    elif template.tools and request.parallel_tool_calls is False:
        message = "parallel_tool_calls is not supported yet: leave it out or give true"
        raise InvalidRequest(message, param="parallel_tool_calls", code="unsupported_parameter")
    if not may_be_variables(unknown):
        raise unknown_error(ChatRequest, list(unknown))
    if both := next((name for name in unknown if template.variables.get(name, unknown[name]) != unknown[name]), None):
        message = f"{both} and chat_template_kwargs.{both} differ: give one of them"
        raise InvalidRequest(message, param=both)
    controls = {name: value for name in ("reasoning_effort", "verbosity") if (value := getattr(request, name))}
    known = ", ".join(ChatRequest.model_fields) if unknown else ""
    return replace(template, controls=controls, unknown=unknown, known=known)


def _render(
    request: ChatRequest, results: Sequence[Result], model: str, deadline_reason: DeadlineReason = "deadline"
) -> bytes:
    choices = []
    for index, completion in enumerate(completion for result in results for completion in result.completions):
        finish_reason, is_cut = told(completion, request.deadline_finish_reason or deadline_reason)
        scored = completion.logprobs
        choices.append(
            ChatChoice(
                index=index,
                message=ChatMessage("assistant", completion.text, None),
                finish_reason=finish_reason,
                logprobs=None if scored is None else ChatLogprobs(list(map(_token, scored)), None),
                seed=completion.seed,
                deadline=is_cut,
            )
        )
    answer = ChatCompletion(
        id=f"chatcmpl-{request.request_id or secrets.token_hex(12)}",
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
