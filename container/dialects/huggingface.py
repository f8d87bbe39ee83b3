"""The Hugging Face dialect: `{"inputs": ..., "parameters": {...}}`, answered with a flat list of generated texts.

The names are those of the text-generation pipeline and of TGI, and vLLM's for the chat template. Differences from the
pipeline: the answer is new text only unless `return_full_text`, which puts the prompt before it (a chat's as its
template writes it); the answer to a list is flat even with several texts per input; a last message of the assistant is
continued only if `continue_final_message` says so. A text that the deadline cut has its details, asked for or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

from msgspec import UNSET, Struct, UnsetType
from pydantic import Field

from container.core import Call, DeadlineReason, FinishReason, Item, Prompt, Result, Template, TokenLogprob
from container.dialects.chat import Count, CutMark, Logprob, TemplateOptions
from container.dialects.encoding import encode
from container.dialects.messages import read_messages
from container.dialects.prompt import read_each, read_text
from container.dialects.wire import (
    Choices,
    DeadlineFinishReason,
    Flag,
    LogitBias,
    Logprobs,
    MinNewTokens,
    NewTokens,
    SamplingOptions,
    Stop,
    StopTokenIds,
    Truncation,
    Wire,
    read,
    told,
)
from container.errors import InvalidRequest

PREFIX = "parameters."
_NAMED = ("max_new_tokens", "min_new_tokens", "stop_token_ids", "logit_bias", "spaces_between_special_tokens")
NAMES = {name: PREFIX + name for name in _NAMED}
EXPECTED_INPUTS = "a string, a list of strings, a list of messages or a list of lists of messages"


class ScalarOptions(SamplingOptions):
    """The part of `parameters` that has one value each, and so may be given as custom attributes, too."""

    max_new_tokens: NewTokens = None
    min_new_tokens: MinNewTokens = None
    do_sample: Flag = None
    return_full_text: Flag = None


class Options(ScalarOptions, TemplateOptions):
    """The object `parameters`."""

    logit_bias: LogitBias = None
    logprobs: Logprobs = None
    stop_sequences: Stop = None
    stop_strings: Stop = None
    stop_token_ids: StopTokenIds = None
    num_return_sequences: Choices = None
    details: Flag = None
    truncate: Truncation = None
    deadline_finish_reason: DeadlineFinishReason = None

    # A cache of the model's changes no text, and texts of different lengths are never padded here.
    ignored: ClassVar = frozenset({"use_cache", "pad_token_id"})
    neutral: ClassVar = {
        **TemplateOptions.neutral,
        "length_penalty": (1,),
        "no_repeat_ngram_size": (0,),
        "num_beams": (1,),
        "num_beam_groups": (1,),
        "early_stopping": (False,),
        "penalty_alpha": (0,),
        "diversity_penalty": (0,),
        "return_text": (True,),
        "return_tensors": (False,),
        "grammar": (),
        "adapter_id": (),
        # It does not keep a prefix of the candidates in the order of their probabilities, which is all that the sampler
        # looks at: it would cost every step of the whole batch a sort of the vocabulary.
        "typical_p": (1,),
        "watermark": (False,),
        "best_of": (1,),
        "decoder_input_details": (False,),
        "top_n_tokens": (0,),
    }


class Request(Wire):
    inputs: Any = Field(description=EXPECTED_INPUTS)
    parameters: Any = None

    ignored: ClassVar = frozenset({"options"})  # the hub's API has them: whether to wait for a model, and to cache
    neutral: ClassVar = {"stream": (False,), "messages": (), "prompt": ()}
    reasons: ClassVar = {"stream": "must be false, as asynchronous inference refuses answers sent in chunks"}


class GeneratedTopToken(Struct, forbid_unknown_fields=True):
    id: Count
    text: str
    logprob: Logprob


class GeneratedToken(GeneratedTopToken):
    top: list[GeneratedTopToken]


class Details(Struct, forbid_unknown_fields=True):
    finish_reason: FinishReason
    prompt_tokens: Count
    generated_tokens: Count
    seed: int | None
    deadline: CutMark = UNSET
    tokens: list[GeneratedToken] | UnsetType = UNSET


class Generated(Struct, forbid_unknown_fields=True):
    generated_text: str
    details: Details | UnsetType = UNSET


def read_request(document: object) -> Call:
    """Read a document of this dialect. Raises InvalidRequest."""
    request = read(Request, document)
    options = read(Options, {} if request.parameters is None else request.parameters, PREFIX)
    stop = _stop(options)
    if options.logprobs is not None and not options.details:
        message = f"{PREFIX}logprobs are shown in the details: give {PREFIX}details with true"
        raise InvalidRequest(message, param=f"{PREFIX}logprobs")
    parameters = options.parameters(
        n=options.num_return_sequences or 1, stop=stop, truncate_prompt_tokens=options.truncate
    )
    items = tuple(
        Item(prompt=prompt, parameters=parameters, sample_by_default=False, param=path, names=NAMES)
        for path, prompt in _prompts(request.inputs, options.template(PREFIX), parameters.n)
    )
    return Call(items=items, render=partial(_render, options))


def _stop(options: Options) -> tuple[str, ...]:
    """Return the stop strings: `stop_strings` in the pipeline, `stop` in TGI, `stop_sequences` in its older clients."""
    names = [name for name in ("stop", "stop_sequences", "stop_strings") if getattr(options, name) is not None]
    if len(names) > 1:
        named = " and ".join(PREFIX + name for name in names)
        raise InvalidRequest(f"{named} mean the same: give one of them", param=PREFIX + names[1])
    return getattr(options, names[0]) if names else ()


def _prompts(inputs: object, template: Template, n: int) -> Iterable[tuple[str, Prompt]]:
    """Return each prompt with its path. The first entry of a list tells what all of them must be."""
    each = partial(read_each, n=n, n_at=f"{PREFIX}num_return_sequences")
    match inputs:
        case str():
            _validate_no_template(template)
            return [("inputs", read_text(inputs, "inputs"))]
        case []:
            raise InvalidRequest(f"inputs is empty; it must be {EXPECTED_INPUTS}", param="inputs")
        case [str(), *_]:
            _validate_no_template(template)
            return each(inputs, "inputs", read_text)
        case [dict(), *_]:
            return [("inputs", read_messages(inputs, "inputs", template))]
        case [list(), *_]:
            return each(inputs, "inputs", partial(read_messages, template=template))
    raise InvalidRequest(f"inputs must be {EXPECTED_INPUTS}", param="inputs")


def _validate_no_template(template: Template) -> None:
    """Raise InvalidRequest if a text comes with options for the chat template."""
    if template != Template():
        names = ", ".join(PREFIX + name for name in TemplateOptions.model_fields)
        raise InvalidRequest(f"{names} go with messages; inputs is a text: leave them out", param="parameters")


def _render(
    options: Options, results: Sequence[Result], model: str, deadline_reason: DeadlineReason = "deadline"
) -> bytes:
    answer = []
    pairs = [(result, completion) for result in results for completion in result.completions]
    for result, completion in pairs:
        details: Details | UnsetType = UNSET
        if options.details or completion.finish_reason == "deadline":  # its text alone would look finished
            finish_reason, is_cut = told(completion, options.deadline_finish_reason or deadline_reason)
            details = Details(
                finish_reason=finish_reason,
                prompt_tokens=result.prompt_tokens,
                generated_tokens=len(completion.token_ids),
                seed=completion.seed,
                deadline=is_cut,
                tokens=UNSET if completion.logprobs is None else list(map(_token, completion.logprobs)),
            )
        text = result.prompt_text + completion.text if options.return_full_text else completion.text
        answer.append(Generated(text, details))
    return encode(answer)


def _token(token: TokenLogprob) -> GeneratedToken:
    top = [GeneratedTopToken(likely.id, likely.text, likely.logprob) for likely in token.top]
    return GeneratedToken(token.id, token.text, token.logprob, top)
