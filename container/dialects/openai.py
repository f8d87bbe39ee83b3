"""The OpenAI dialects: chat completions and completions, as the API reference has them and OpenAI's client reads them.

Extensions are named as vLLM names them: `top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `ignore_eos`,
`stop_token_ids`, `chat_template_kwargs`, `add_generation_prompt`, `continue_final_message`. Where we differ from
OpenAI: without a limit a completion is as long as the server allows, not 16 tokens; every choice has its `seed`; tools
are the template's to show and their calls stay in the text, as the model writes them; `text_offset` counts from the
start of the choice's text.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import Field

from container.core import Call, Completion, Item, Parameters, Prompt, Result, Template, TokenLogprob
from container.dialects.chat import TemplateOptions
from container.dialects.chat import read_chat as read_chat_prompt
from container.dialects.fields import (
    LARGEST_COUNT,
    Choices,
    Flag,
    LogitBias,
    Logprobs,
    MinNewTokens,
    MinP,
    NewTokens,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stop,
    StopTokenIds,
    TopP,
)
from container.dialects.prompt import read_each, read_text, read_token_ids
from container.dialects.wire import Wire, read
from container.errors import InvalidRequest

Temperature = Annotated[float | None, Field(ge=0, le=2, description="a number from 0 to 2")]
TopK = Annotated[int | None, Field(ge=-1, le=LARGEST_COUNT, description="an integer of -1 (off) or more")]
OTHER_DIALECT = "is another dialect's"
EXPECTED_PROMPT = "a string, a list of strings, a list of token ids or a list of lists of token ids"


class Options(Wire):
    """What both kinds of request may hold."""

    model: str | None = Field(None, description="a string")
    max_tokens: NewTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    n: Choices = None
    stop: Stop = None
    seed: Seed = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    logit_bias: LogitBias = None
    top_k: TopK = None
    min_p: MinP = None
    repetition_penalty: RepetitionPenalty = None
    min_tokens: MinNewTokens = None
    ignore_eos: Flag = None
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
    refusals: ClassVar = {"stream": "must be false, as asynchronous inference refuses answers sent in chunks"}

    def parameters(self, max_new_tokens: int | None, logprobs: int | None) -> Parameters:
        top_k = 0 if self.top_k == -1 else self.top_k
        return Parameters(
            max_new_tokens=max_new_tokens,
            min_new_tokens=self.min_tokens or 0,
            temperature=self.temperature,
            top_k=top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            n=self.n or 1,
            stop=self.stop or (),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos or False,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            logprobs=logprobs,
        )


class ChatRequest(Options, TemplateOptions):
    messages: Any = Field(description="a list of messages")
    max_completion_tokens: NewTokens = None
    logprobs: Flag = None
    top_logprobs: Logprobs = None
    tool_choice: Literal["none", "auto"] | None = Field(None, description='"none" or "auto"')
    parallel_tool_calls: Flag = None

    neutral: ClassVar = {
        **Options.neutral,
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
    refusals: ClassVar = {
        **Options.refusals,
        **TemplateOptions.refusals,
        "inputs": OTHER_DIALECT,
        "prompt": OTHER_DIALECT,
    }

    def limit(self) -> tuple[str, int | None]:
        """`max_completion_tokens` is the newer name of `max_tokens`."""
        if self.max_completion_tokens is None:
            return "max_tokens", self.max_tokens
        if self.max_tokens is not None and self.max_tokens != self.max_completion_tokens:
            message = "max_tokens and max_completion_tokens mean the same and differ: give one of them"
            raise InvalidRequest(message, param="max_completion_tokens")
        return "max_completion_tokens", self.max_completion_tokens

    def likeliest(self) -> int | None:
        """How many of the most likely tokens to report; None: no log probabilities at all."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: give it with true", param="top_logprobs")
        return self.top_logprobs or 0 if self.logprobs else None

    def template_of_choice(self) -> Template:
        template = self.template()
        if self.tool_choice == "none":
            return replace(template, tools=())
        if template.tools and self.parallel_tool_calls is False:
            message = "parallel_tool_calls is not supported yet: leave it out or give true"
            raise InvalidRequest(message, param="parallel_tool_calls", code="unsupported_parameter")
        return template


class CompletionRequest(Options):
    prompt: Any = Field(description=EXPECTED_PROMPT)
    echo: Flag = None
    best_of: Choices = None
    logprobs: Logprobs = None

    neutral: ClassVar = {**Options.neutral, "suffix": ("",), "inputs": (), "messages": ()}
    refusals: ClassVar = {**Options.refusals, "inputs": OTHER_DIALECT, "messages": OTHER_DIALECT}

    def refuse_combinations(self) -> None:
        if self.best_of is not None and self.best_of != (self.n or 1):
            message = "best_of is not supported yet: leave it out or give n's value"
            raise InvalidRequest(message, param="best_of", code="unsupported_parameter")
        if self.echo and self.logprobs is not None:
            message = "logprobs of a prompt are not supported yet: leave out echo or logprobs"
            raise InvalidRequest(message, param="logprobs", code="unsupported_parameter")


def read_chat(document: object) -> Call:
    request = read(ChatRequest, document)
    name, max_new_tokens = request.limit()
    parameters = request.parameters(max_new_tokens, request.likeliest())
    prompt = read_chat_prompt(request.messages, "messages", request.template_of_choice())
    item = _item("messages", prompt, parameters, limit_name=name)
    return Call(items=(item,), render=partial(_render_chat, request))


def read_completion(document: object) -> Call:
    request = read(CompletionRequest, document)
    request.refuse_combinations()
    parameters = request.parameters(request.max_tokens, request.logprobs)
    items = tuple(_item(path, prompt, parameters, limit_name="max_tokens") for path, prompt in _prompts(request))
    return Call(items=items, render=partial(_render_completion, request))


def _item(path: str, prompt: Prompt, parameters: Parameters, *, limit_name: str) -> Item:
    names = {"max_new_tokens": limit_name, "min_new_tokens": "min_tokens"}
    return Item(prompt=prompt, parameters=parameters, sample_by_default=True, param=path, names=names)


def _prompts(request: CompletionRequest) -> Iterable[tuple[str, Prompt]]:
    """Each prompt with its path. The first entry of a list tells what all of them must be."""
    each = partial(read_each, n=request.n or 1, n_at="n")
    match prompt := request.prompt:
        case str():
            return [("prompt", read_text(prompt, "prompt"))]
        case []:
            raise InvalidRequest(f"prompt is empty; it must be {EXPECTED_PROMPT}", param="prompt")
        case [str(), *_]:
            return each(prompt, "prompt", read_text)
        case [int(), *_]:
            return [("prompt", read_token_ids(prompt, "prompt"))]
        case [list(), *_]:
            return each(prompt, "prompt", read_token_ids)
    raise InvalidRequest(f"prompt must be {EXPECTED_PROMPT}", param="prompt")


def _render_chat(request: ChatRequest, results: Sequence[Result], model: str) -> bytes:
    completions = [completion for result in results for completion in result.completions]
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            **_end(completion, _chat_logprobs),
        }
        for index, completion in enumerate(completions)
    ]
    return _answer("chatcmpl", "chat.completion", request.model or model, choices, results)


def _render_completion(request: CompletionRequest, results: Sequence[Result], model: str) -> bytes:
    """Choices are numbered over the prompts, then over each prompt's n."""
    texts = [
        (result.prompt_text + completion.text if request.echo else completion.text, completion)
        for result in results
        for completion in result.completions
    ]
    choices = [
        {"index": index, "text": text, **_end(completion, _completion_logprobs)}
        for index, (text, completion) in enumerate(texts)
    ]
    return _answer("cmpl", "text_completion", request.model or model, choices, results)


def _end(completion: Completion, written: Callable[[Sequence[TokenLogprob]], dict[str, Any]]) -> dict[str, Any]:
    logprobs = None if completion.logprobs is None else written(completion.logprobs)
    return {"finish_reason": completion.finish_reason, "logprobs": logprobs, "seed": completion.seed}


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [_chat_token(token) | {"top_logprobs": [_chat_token(rival) for rival in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    encoded = None if token.utf8 is None else list(token.utf8)
    return {"token": token.text, "logprob": token.logprob, "bytes": encoded}


def _completion_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`top_logprobs` has the chosen token, too. Of two tokens with the same text it shows the likelier one."""
    return {
        "tokens": [_completion_token(token) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_likeliest(token) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _likeliest(token: TokenLogprob) -> dict[str, float]:
    likeliest: dict[str, float] = {}
    for rival in sorted((*token.top, token), key=lambda rival: -rival.logprob):
        likeliest.setdefault(_completion_token(rival), rival.logprob)
    return likeliest


def _completion_token(token: TokenLogprob) -> str:
    """Completions, where tokens have no field of bytes, mark them: `bytes:\\xf0\\x9f`."""
    is_whole = token.utf8 is None or token.utf8 == token.text.encode()
    return token.text if is_whole else f"bytes:{token.text}"


def _answer(id_prefix: str, kind: str, model: str, choices: list[dict[str, Any]], results: Sequence[Result]) -> bytes:
    prompt_tokens = sum(result.prompt_tokens for result in results)
    completion_tokens = sum(result.completion_tokens for result in results)
    answer = {
        "id": f"{id_prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
    return msgspec.json.encode(answer)
