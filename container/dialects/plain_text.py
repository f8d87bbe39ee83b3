"""The text dialect: the body is the prompt, the answer is the text, parameters come from the custom attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from container.core import Call, Item, Parameters, Result
from container.dialects.fields import (
    Flag,
    MinNewTokens,
    MinP,
    NewTokens,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
)
from container.dialects.prompt import read_text
from container.dialects.wire import BYTE_ORDER_MARK, Wire, read
from container.errors import InvalidRequest

HEADER = "X-Amzn-SageMaker-Custom-Attributes"
"""Header that SageMaker passes on to the container."""
PREFIX = f"{HEADER}: "
"""Text before an attribute's key in an error's `param`."""
NAMES = {name: PREFIX + name for name in ("max_new_tokens", "min_new_tokens")}


class Options(Wire):
    """The keys of the custom attributes that are ours: the Hugging Face dialect's, as far as they are scalars."""

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
    seed: Seed = None
    stop: Stop = None
    ignore_eos: Flag = None
    return_full_text: Flag = None

    def parameters(self) -> Parameters:
        return Parameters(
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens or 0,
            do_sample=self.do_sample,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=self.stop or (),
            ignore_eos=self.ignore_eos or False,
        )


def read_prompt(body: bytes, attributes: Mapping[str, Sequence[str]]) -> Call:
    """Read a prompt; `attributes` has the values of each key. Raises InvalidRequest."""
    given = {
        key: list(attributes[key]) if key == "stop" else _scalar(single_value(attributes, key))
        for key in Options.model_fields
        if key in attributes
    }
    options = read(Options, given, PREFIX)
    prompt = read_text(_decoded(body), "body")
    item = Item(prompt=prompt, parameters=options.parameters(), sample_by_default=False, param="body", names=NAMES)
    return Call(items=(item,), render=partial(_render, options), content_type="text/plain; charset=utf-8")


def _decoded(body: bytes) -> str:
    try:
        return body.removeprefix(BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError as error:
        position = error.start
    raise InvalidRequest(f"the body is not UTF-8 (byte {position})", param="body")


def single_value(attributes: Mapping[str, Sequence[str]], key: str) -> str:
    """Return the value of a key that is there. Raises InvalidRequest if it has several."""
    values = attributes[key]
    if len(values) > 1:
        raise InvalidRequest(f"{PREFIX}{key} is given {len(values)} times; give it once", param=PREFIX + key)
    return values[0]


def _scalar(text: str) -> object:
    """Read a scalar as JSON writes it: `64`, `0.5`, `true`. Other text stays text, which its field then refuses."""
    try:
        return msgspec.json.decode(text) if text != "null" else text
    except (msgspec.DecodeError, RecursionError):
        return text


def _render(options: Options, results: Sequence[Result], model: str) -> bytes:
    (result,) = results
    text = result.completions[0].text
    return (result.prompt_text + text if options.return_full_text else text).encode()
