"""What a request asks for and what it gets, in no dialect: values that the other packages share."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "deadline"]
"""`deadline`: the text so far, perhaps none."""
PromptEnding = Literal["answer", "continue", "nothing"]
"""How a chat's prompt ends: with the start of an answer, within the last message, or as the messages end."""
MAX_TEMPERATURE = 1_000_000
"""A temperature far beyond where all tokens are equally likely, and far below where float32 overflows."""
RANDOM_SEED_BITS = 53
"""Width of random seeds: JSON numbers up to there are exact in every language."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A prompt as text. Special tokens are added as the model's tokenizer does by default."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What the model's chat template is given beside the messages."""

    tools: tuple[dict[str, Any], ...] = ()
    """Function tools as OpenAI writes them."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """The template's own: `{"enable_thinking": False}`."""
    ending: PromptEnding = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A prompt as messages, put together by the model's own chat template.

    `messages` are JSON objects with at least `role`, already checked by the dialect. The arguments of their tool calls
    are objects, not JSON strings, as templates expect them.
    """

    messages: tuple[dict[str, Any], ...]
    template: Template = Template()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """A prompt as token ids, used as they are."""

    ids: tuple[int, ...]


Prompt = Text | Chat | TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What a request says about generation. `None` means that it says nothing, so that the model's
    `generation_config`, then the dialect's default applies.

    Ranges are checked by the dialect, so that an error names the field as the caller wrote it:
    max_new_tokens >= 1 (0 too for OpenAI's echo-less completions is refused), 0 <= min_new_tokens <= max_new_tokens,
    temperature in [0, 2] for OpenAI and [0, MAX_TEMPERATURE] elsewhere (0 is greedy), top_k >= 0 (0 is off),
    top_p in (0, 1], min_p in [0, 1), seed in [0, 2**64), n in [1, 128], at most 16 stop strings of 1 to 1,000
    characters, repetition_penalty in (0, 10], presence_penalty and frequency_penalty in [-2, 2], logprobs in [0, 20],
    at most 1,024 pairs of token id and amount in logit_bias, of which each amount is in [-100, 100].
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
    logprobs: int | None = None
    """How many of the most likely tokens to report beside each chosen one; None: report nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One prompt with its parameters: what one line of a batch, or one of a list of inputs, becomes.

    `sample_by_default` is the dialect's choice where neither the request nor the model says (OpenAI: temperature 1).
    `param` names the prompt's field in the caller's own words, for errors: `inputs[3]`, `messages`.
    """

    prompt: Prompt
    parameters: Parameters
    sample_by_default: bool
    param: str
    names: Mapping[str, str] = field(default_factory=dict)
    """Fields of `parameters` in the caller's own words: `{"max_new_tokens": "max_tokens"}`."""

    def name_of(self, parameter: str) -> str:
        return self.names.get(parameter, parameter)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token and its natural log probability, by the model's own scores: before temperature, penalties and bias."""

    id: int
    text: str
    """Bytes that are no whole character are escaped: `\\xf0\\x9f`. A special token has its name."""
    utf8: bytes | None
    """Its share of the text. None for a special token, which has none."""
    logprob: float
    offset: int = 0
    """Characters of the completion's text before it."""
    top: tuple[TokenLogprob, ...] = ()
    """The most likely tokens at its place, itself among them if it is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One generated text. `completion_tokens` counts every generated token, a stop token or stop string included."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    seed: int | None
    """The seed that reproduces it; None when greedy."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Of the tokens that are in the text, if they were asked for. Left out are a special token that ended it, and
    what lies wholly behind the start of a stop string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an item became: `n` completions of one prompt."""

    prompt_text: str
    """The prompt as the model saw it, for `return_full_text`."""
    prompt_tokens: int
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Everything that one document asks for, and how its answer is written."""

    items: tuple[Item, ...]
    """Items in the order in which the answer needs their results."""
    render: Callable[[Sequence[Result], str], bytes]
    """Writes the answer, in `content_type`, from a result for each item and the served model's name."""
    content_type: str = "application/json"


class Seeds(msgspec.Struct, frozen=True, array_like=True):
    """The seeds of choices whose request gives none: random to callers, and the same again when their job is resumed.

    No two items of a slot get the same seed. The journal keeps `secret`, the job's own.
    """

    secret: bytes
    slot: int = 0

    @classmethod
    def random(cls) -> Seeds:
        return cls(secrets.token_bytes(16))

    def seed(self, line: int, item: int) -> int:
        """Return the seed of item `item` in line `line` of a batch, both counted from 0."""
        position = b"".join(number.to_bytes(8) for number in (self.slot, line, item))
        digest = hashlib.blake2b(position, key=self.secret, digest_size=8).digest()
        return int.from_bytes(digest) >> (64 - RANDOM_SEED_BITS)
