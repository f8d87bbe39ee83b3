"""Values of requests and results, in no dialect, that the other packages share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

FinishReason = Literal["stop", "length", "deadline"]
"""Reasons why a text ended. `deadline` leaves the text so far, perhaps none."""
DeadlineReason = Literal["deadline", "length"]
"""Reasons that an answer may give for a text that the deadline cut: some clients know only OpenAI's own."""
PromptEnding = Literal["answer", "continue", "nothing"]
"""Endings of a chat's prompt: the start of an answer, within the last message, or the end of the messages."""
MAX_TEMPERATURE = 1_000_000
"""A temperature far beyond where all tokens are equally likely, and far below where float32 overflows."""
PART_SEPARATOR = "\n"
"""Text between two parts of a message, where they become one text, as in vLLM and llama.cpp."""
RANDOM_SEED_BITS = 53
"""Width of random seeds: JSON numbers up to there are exact in every language."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A prompt as text. Special tokens that are in it are tokens."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Input of the model's chat template beside the messages. Those that it doesn't read make the request an error."""

    tools: tuple[dict[str, Any], ...] = ()
    """Function tools as OpenAI writes them."""
    tools_name: str = "tools"
    """Name of the tools' field in the caller's own words."""
    documents: tuple[dict[str, Any], ...] = ()
    """Documents to answer from, in the template's own form."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """The template's own variables: `{"enable_thinking": False}`. They may have no effect."""
    controls: Mapping[str, str] = field(default_factory=dict)
    """Fields of OpenAI's that only a template can honour: `{"reasoning_effort": "low"}`."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request that its dialect doesn't know: variables of the template, or mistakes."""
    known: str = field(default="", compare=False)
    """Names of the fields that the dialect knows, for the error of a mistake."""
    prefix: str = field(default="", compare=False)
    """Text before the name of each of these fields in the caller's own words: `parameters.`."""
    ending: PromptEnding = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A prompt as messages, put together by the model's own chat template.

    `messages` are JSON objects with at least `role`, already checked by the dialect; fields of theirs that no dialect
    knows may be the template's. The arguments of their tool calls are objects, as templates expect them, or text where
    a model wrote no JSON. A `content` of several texts is a list of text parts.
    """

    messages: tuple[dict[str, Any], ...]
    template: Template = Template()
    older_calls: frozenset[int] = frozenset()
    """Indices of messages whose one tool call is in OpenAI's older field, `function_call`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """A prompt as token ids, used as they are."""

    ids: tuple[int, ...]


Prompt = Text | Chat | TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """A request's own parameters. For those that are None the model's `generation_config` counts, then the dialect.

    Ranges are checked by the dialect, so that an error names the field as the caller wrote it:
    max_new_tokens >= 1 (OpenAI's completions, too, refuse 0), 0 <= min_new_tokens <= max_new_tokens,
    temperature in [0, MAX_TEMPERATURE] (0 is greedy), top_k >= 0 (0 is off), top_p and min_p in [0, 1], seed in
    [0, 2**64), n in [1, 128], at most 128 stop strings of 1 to 1,000 characters, truncate_prompt_tokens >= 1 or -1,
    repetition_penalty in (0, 10], presence_penalty and frequency_penalty in [-2, 2], logprobs in [0, 20],
    at most 1,024 pairs of token id and amount in logit_bias, each amount in [-100, 100].
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    truncate_prompt_tokens: int | None = None
    """Number of the prompt's last tokens to keep; -1 for as many as the model holds beside the answer."""
    logprobs: int | None = None
    """Number of the most likely tokens to report beside each chosen one; None reports no log probabilities."""
    add_special_tokens: bool | None = None
    """Whether the prompt gets the tokens that the tokenizer adds to any text, such as BOS; None: a text, no chat."""
    skip_special_tokens: bool | None = None
    """Whether texts leave out special tokens; None: but for those that mark something, such as `[TOOL_CALLS]`."""
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    """Whether texts end with what stopped them; None leaves out stop strings and special tokens, but no other one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One prompt with its parameters, made of a line of a batch or of one of a list of inputs.

    `sample_by_default` is the dialect's choice if neither the request nor the model makes one (OpenAI: temperature 1).
    `param` names the prompt's field in the caller's own words, for errors: `inputs[3]`, `messages`.
    """

    prompt: Prompt
    parameters: Parameters
    sample_by_default: bool
    param: str
    names: Mapping[str, str] = field(default_factory=dict)
    """Fields of `parameters` in the caller's own words: `{"max_new_tokens": "max_tokens"}`."""

    def name_of(self, parameter: str) -> str:
        """Return a parameter's name in the caller's own words."""
        return self.names.get(parameter, parameter)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token and its natural log probability, by the model's own scores: before temperature, penalties and bias."""

    id: int
    text: str
    """The token's text. Bytes that are not whole characters are escaped: `\\xf0\\x9f`. A special token has its name."""
    utf8: bytes | None
    """The token's share of the text. None for a special token that the text leaves out."""
    logprob: float
    offset: int = 0
    """Characters of the completion's text before the token."""
    top: tuple[TokenLogprob, ...] = ()
    """The most likely tokens in this position, the chosen one among them if it is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One generated text. `token_ids` has every generated token, those of a stop token or stop string included."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    seed: int | None
    """The seed that reproduces it; None when greedy."""
    stop: str | None = None
    """The stop string that ended it."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Log probabilities of the text's tokens, if the request asks for them. A special token that ended the text and
    tokens wholly behind the start of a stop string are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of an item: `n` completions of one prompt."""

    prompt_text: str
    """The prompt as the model saw it, for `return_full_text`."""
    prompt_tokens: int
    completions: tuple[Completion, ...]


class Render(Protocol):
    """Writes the answer from a result for each item."""

    def __call__(self, results: Sequence[Result], model: str, deadline_reason: DeadlineReason = "deadline", /) -> bytes:
        """Return the answer, in which `model` is the served model's name.

        `deadline_reason` is what it tells of texts that the deadline cut, if the request doesn't say.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Everything that one document asks for, and how its answer is written."""

    items: tuple[Item, ...]
    """Items in the order in which the answer needs their results."""
    render: Render
    """Writes the answer, in `content_type`."""
    content_type: str = "application/json"


class Constants(msgspec.Struct, frozen=True, array_like=True):
    """Values that a request's items are made with beside the request itself: the same again when its job is resumed.

    The journal keeps `secret` and `clock`, which are the job's own.
    """

    secret: bytes
    """Secret that seeds are made of where the request gives none. No two items of a slot get the same one."""
    slot: int = 0
    clock: float | None = None
    """Unix time that chat templates see; None: the present."""

    def seed(self, line: int, item: int) -> int:
        """Return the seed of item `item` in line `line` of a batch, both counted from 0."""
        position = b"".join(number.to_bytes(8) for number in (self.slot, line, item))
        digest = hashlib.blake2b(position, key=self.secret, digest_size=8).digest()
        return int.from_bytes(digest) >> (64 - RANDOM_SEED_BITS)
