"""The Hugging Face dialect: `{"inputs": ..., "parameters": {...}}`, answered with a flat list of generated texts.

The names are those of the text-generation pipeline and of TGI. Where we differ from the pipeline: the answer is new
text only unless `return_full_text`, which puts the prompt before it (a chat's as its template writes it); the answer to
a list is flat even with several texts per input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from ..errors import InvalidRequest
from ..generation import Completion, Item, Parameters, Prompt, Result
from .call import Call
from .fields import Choices, Flag, MinNewTokens, NewTokens, Seed, Stop, StopTokenIds, Temperature, TopK, TopP
from .prompt import read_chat, read_each, read_text
from .wire import Wire, read

PREFIX = "parameters."
NAMES = {name: PREFIX + name for name in ("max_new_tokens", "min_new_tokens", "stop_token_ids")}
EXPECTED_INPUTS = "a string, a list of strings, a list of messages or a list of lists of messages"


class Options(Wire):
    """What `parameters` may hold."""

    max_new_tokens: NewTokens = None
    min_new_tokens: MinNewTokens = None
    do_sample: Flag = None
    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None
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
        "repetition_penalty": (1,),
        "frequency_penalty": (0,),
        "length_penalty": (1,),
        "no_repeat_ngram_size": (0,),
        "num_beams": (1,),
        "typical_p": (1,),
        "min_p": (0,),
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
            seed=self.seed,
            n=self.num_return_sequences or 1,
            stop=self._stop(),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos or False,
        )

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

    neutral: ClassVar = {"stream": (False,)}
    refusals: ClassVar = {"stream": "must be false, as asynchronous inference refuses answers sent in chunks"}


def read_request(document: object) -> Call:
    request = read(Request, document)
    options = read(Options, {} if request.parameters is None else request.parameters, PREFIX)
    parameters = options.parameters()
    items = tuple(
        Item(prompt=prompt, parameters=parameters, sample_by_default=False, param=path, names=NAMES)
        for path, prompt in _prompts(request.inputs)
    )
    return Call(items=items, renderer=partial(_render, options))


def _prompts(inputs: object) -> Iterable[tuple[str, Prompt]]:
    """Each prompt with its path. The first entry of a list tells what all of them must be."""
    match inputs:
        case str():
            return [("inputs", read_text(inputs, "inputs"))]
        case []:
            raise InvalidRequest(f"inputs is empty; it must be {EXPECTED_INPUTS}", param="inputs")
        case [str(), *_]:
            return read_each(inputs, "inputs", read_text)
        case [dict(), *_]:
            return [("inputs", read_chat(inputs, "inputs"))]
        case [list(), *_]:
            return read_each(inputs, "inputs", read_chat)
    raise InvalidRequest(f"inputs must be {EXPECTED_INPUTS}", param="inputs")


def _render(options: Options, results: Sequence[Result], model: str) -> list[dict[str, Any]]:
    return [_generated(options, result, completion) for result in results for completion in result.completions]


def _generated(options: Options, result: Result, completion: Completion) -> dict[str, Any]:
    text = result.prompt_text + completion.text if options.return_full_text else completion.text
    if not options.details:
        return {"generated_text": text}
    details = {
        "finish_reason": completion.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "generated_tokens": len(completion.token_ids),
        "seed": completion.seed,
    }
    return {"generated_text": text, "details": details}
