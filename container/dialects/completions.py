"""OpenAI's completions, as the API reference has them and OpenAI's client reads them; extensions are those of `chat`.

Differences from OpenAI: without a limit a completion is as long as the server allows, not 16 tokens; every choice has
its `seed`; `text_offset` counts from the start of the choice's text.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Struct
from pydantic import Field

from container.core import Call, DeadlineReason, FinishReason, Item, Prompt, Result, TokenLogprob
from container.dialects.chat import OTHER_DIALECT, Count, CutMark, OpenAIOptions, Usage, usage
from container.dialects.encoding import encode
from container.dialects.prompt import read_each, read_text, read_token_ids
from container.dialects.wire import Choices, Flag, Logprobs, read, told, whole
from container.errors import InvalidRequest

EXPECTED_PROMPT = "a string, a list of strings, a list of token ids or a list of lists of token ids"


class CompletionRequest(OpenAIOptions):
    prompt: Any = Field(description=EXPECTED_PROMPT)
    echo: Flag = None
    best_of: Choices = None
    logprobs: Logprobs = None

    neutral: ClassVar = {**OpenAIOptions.neutral, "suffix": ("",), "inputs": (), "messages": ()}
    reasons: ClassVar = {**OpenAIOptions.reasons, "inputs": OTHER_DIALECT, "messages": OTHER_DIALECT}


class CompletionLogprobs(Struct, forbid_unknown_fields=True):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    """The most likely tokens at each position, the chosen one included."""
    text_offset: list[int]


class CompletionChoice(Struct, forbid_unknown_fields=True):
    index: Count
    text: str
    finish_reason: FinishReason
    logprobs: CompletionLogprobs | None
    seed: Annotated[int | None, Meta(description="send it again for the same text; null where the choice was greedy")]
    deadline: CutMark = UNSET


class TextCompletion(Struct, forbid_unknown_fields=True):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: Annotated[list[CompletionChoice], Meta(min_length=1)]
    usage: Usage


def read_completion(document: object) -> Call:
    """Read a request for completions. Raises InvalidRequest."""
    request = read(CompletionRequest, document)
    if request.best_of is not None and request.best_of != (request.n or 1):
        message = "best_of is not supported yet: leave it out or give n's value"
        raise InvalidRequest(message, param="best_of", code="unsupported_parameter")
    if request.echo and request.logprobs is not None:
        message = "logprobs of a prompt are not supported yet: leave out echo or logprobs"
        raise InvalidRequest(message, param="logprobs", code="unsupported_parameter")
    parameters = request.parameters(max_new_tokens=request.max_tokens, min_new_tokens=request.min_tokens or 0)
    names = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
    items = tuple(
        Item(prompt=prompt, parameters=parameters, sample_by_default=True, param=path, names=names)
        for path, prompt in _prompts(request)
    )
    return Call(items=items, render=partial(_render, request))


def _prompts(request: CompletionRequest) -> Iterable[tuple[str, Prompt]]:
    """Return each prompt with its path. The first entry of a list tells what all of them must be."""
    each = partial(read_each, n=request.n or 1, n_at="n")
    match prompt := request.prompt:
        case str():
            return [("prompt", read_text(prompt, "prompt"))]
        case []:
            raise InvalidRequest(f"prompt is empty; it must be {EXPECTED_PROMPT}", param="prompt")
        case [str(), *_]:
            return each(prompt, "prompt", read_text)
        case [int() | float() as first, *_] if isinstance(whole(first), int):
            return [("prompt", read_token_ids(prompt, "prompt"))]
        case [list(), *_]:
            return each(prompt, "prompt", read_token_ids)
    raise InvalidRequest(f"prompt must be {EXPECTED_PROMPT}", param="prompt")


def _render(
    request: CompletionRequest, results: Sequence[Result], model: str, deadline_reason: DeadlineReason = "deadline"
) -> bytes:
    """Write the answer. Choices are numbered over the prompts, then over each prompt's n."""
    choices = []
    completions = [(result, completion) for result in results for completion in result.completions]
    for index, (result, completion) in enumerate(completions):
        finish_reason, is_cut = told(completion, request.deadline_finish_reason or deadline_reason)
        choices.append(
            CompletionChoice(
                index=index,
                text=result.prompt_text + completion.text if request.echo else completion.text,
                finish_reason=finish_reason,
                logprobs=None if completion.logprobs is None else _logprobs(completion.logprobs),
                seed=completion.seed,
                deadline=is_cut,
            )
        )
    answer = TextCompletion(
        id=f"cmpl-{request.request_id or secrets.token_hex(12)}",
        object="text_completion",
        created=int(time.time()),
        model=request.model or model,
        choices=choices,
        usage=usage(results),
    )
    return encode(answer)


def _logprobs(tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
    logprobs = CompletionLogprobs([], [], [], [])
    for token in tokens:
        top: dict[str, float] = {}
        for likely in sorted((*token.top, token), key=lambda likely: -likely.logprob):
            top.setdefault(_token(likely), likely.logprob)  # of two tokens with the same text, the likelier one
        logprobs.tokens.append(_token(token))
        logprobs.token_logprobs.append(token.logprob)
        logprobs.top_logprobs.append(top)
        logprobs.text_offset.append(token.offset)
    return logprobs


def _token(token: TokenLogprob) -> str:
    """Return a token's text. Completions have no field for its bytes, so odd ones are marked: `bytes:\\xf0\\x9f`."""
    is_whole = token.utf8 is None or token.utf8 == token.text.encode()
    return token.text if is_whole else f"bytes:{token.text}"
