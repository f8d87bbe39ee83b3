"""The Hugging Face dialect: `{"inputs": ..., "parameters": {...}}`, answered with a flat list of generated texts.

The names are those of the text-generation pipeline and of TGI, and vLLM's for the chat template. Where we differ from
the pipeline: the answer is new text only unless `return_full_text`, which puts the prompt before it (a chat's as its
template writes it); the answer to a list is flat even with several texts per input; a last message of the assistant is
continued only where `continue_final_message` says so. A text that the deadline cut has its details, asked for or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import msgspec
from pydantic import Field

from container.core import Call, Completion, Item, Parameters, Prompt, Result, Template, TokenLogprob
from container.dialects.chat import TemplateOptions, read_chat
from container.dialects.fields import (
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
    Temperature,
    TopK,
    TopP,
)
from container.dialects.prompt import read_each, read_text
from container.dialects.wire import Wire, read
from container.errors import InvalidRequest

PREFIX = "parameters."
NAMES = {name: PREFIX + name for name in ("max_new_tokens", "min_new_tokens", "stop_token_ids", "logit_bias", "tools")}
EXPECTED_INPUTS = "a string, a list of strings, a list of messages or a list of lists of messages"


class Options(TemplateOptions):
    """What `parameters` may hold."""

    max_new_tokens: NewTokens = None
    min_new_tokens: MinNewTokens = None
    do_sample: Flag = None
    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None
    min_p: MinP = None
    repetition_penalty: RepetitionPenalty = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    logit_bias: LogitBias = None
    logprobs: Logprobs = None
    seed: Seed = None
    stop: Stop = None
    stop_sequences: Stop = None
    stop_strings: Stop = None
    stop_token_ids: StopTokenIds = None
    ignore_eos: Flag = None
    num_return_sequences: Choices = None
    return_full_text: Flag = None
    details: Flag = None

    neutral: ClassVar = {
        **TemplateOptions.neutral,
        "length_penalty": (1,),
        "no_repeat_ngram_size": (0,),
        "num_beams": (1,),
        # What it keeps is no prefix of the candidates in the order of their probabilities, which is all that the
        # sampler looks at: it would cost every step of the whole batch a sort of the vocabulary.
        "typical_p": (1,),
        "watermark": (False,),
        "best_of": (1,),
        "truncate": (),
        "decoder_input_details": (False,),
        "top_n_tokens": (0,),
    }

    def parameters(self) -> Parameters:
        return Parameters(
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens or 0,
            do_sample=self.do_sample,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            n=self.num_return_sequences or 1,
            stop=self._stop(),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos or False,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            logprobs=self._logprobs(),
        )

    def _logprobs(self) -> int | None:
        if self.logprobs is not None and not self.details:
            message = f"{PREFIX}logprobs are shown in the details: give {PREFIX}details with true"
            raise InvalidRequest(message, param=f"{PREFIX}logprobs")
        return self.logprobs

    def _stop(self) -> tuple[str, ...]:
        """The pipeline says `stop_strings`, TGI says `stop`, its older clients say `stop_sequences`."""
        given = {"stop": self.stop, "stop_sequences": self.stop_sequences, "stop_strings": self.stop_strings}
        names = [name for name, strings in given.items() if strings is not None]
        if len(names) > 1:
            named = " and ".join(PREFIX + name for name in names)
            raise InvalidRequest(f"{named} mean the same: give one of them", param=PREFIX + names[1])
        return given[names[0]] or () if names else ()


class Request(Wire):
    inputs: Any = Field(description=EXPECTED_INPUTS)
    parameters: Any = None

    neutral: ClassVar = {"stream": (False,), "messages": (), "prompt": ()}
    refusals: ClassVar = {"stream": "must be false, as asynchronous inference refuses answers sent in chunks"}


def read_request(document: object) -> Call:
    request = read(Request, document)
    options = read(Options, {} if request.parameters is None else request.parameters, PREFIX)
    parameters = options.parameters()
    items = tuple(
        Item(prompt=prompt, parameters=parameters, sample_by_default=False, param=path, names=NAMES)
        for path, prompt in _prompts(request.inputs, options.template(PREFIX), parameters.n)
    )
    return Call(items=items, render=partial(_render, options))


def _prompts(inputs: object, template: Template, n: int) -> Iterable[tuple[str, Prompt]]:
    """Each prompt with its path. The first entry of a list tells what all of them must be."""
    each = partial(read_each, n=n, n_at=f"{PREFIX}num_return_sequences")
    match inputs:
        case str():
            _refuse_template(template)
            return [("inputs", read_text(inputs, "inputs"))]
        case []:
            raise InvalidRequest(f"inputs is empty; it must be {EXPECTED_INPUTS}", param="inputs")
        case [str(), *_]:
            _refuse_template(template)
            return each(inputs, "inputs", read_text)
        case [dict(), *_]:
            return [("inputs", read_chat(inputs, "inputs", template))]
        case [list(), *_]:
            return each(inputs, "inputs", partial(read_chat, template=template))
    raise InvalidRequest(f"inputs must be {EXPECTED_INPUTS}", param="inputs")


def _refuse_template(template: Template) -> None:
    """Texts have none."""
    if template != Template():
        names = ", ".join(PREFIX + name for name in TemplateOptions.model_fields)
        raise InvalidRequest(f"{names} go with messages; inputs is a text: leave them out", param="parameters")


def _render(options: Options, results: Sequence[Result], model: str) -> bytes:
    generated = [_generated(options, result, completion) for result in results for completion in result.completions]
    return msgspec.json.encode(generated)


def _generated(options: Options, result: Result, completion: Completion) -> dict[str, Any]:
    text = result.prompt_text + completion.text if options.return_full_text else completion.text
    if not options.details and completion.finish_reason != "deadline":  # the text alone would look finished
        return {"generated_text": text}
    details: dict[str, Any] = {
        "finish_reason": completion.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "generated_tokens": len(completion.token_ids),
        "seed": completion.seed,
    }
    if completion.logprobs is not None:
        details["tokens"] = [
            _token(token) | {"top": [_token(rival) for rival in token.top]} for token in completion.logprobs
        ]
    return {"generated_text": text, "details": details}


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "logprob": token.logprob}
