"""Values of requests and results, in no dialect, that the other packages share."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "deadline"]
"""Reasons why a text ended. `deadline` leaves the text so far, perhaps none."""
PromptEnding = Literal["answer", "continue", "nothing"]
"""Endings of a chat's prompt: the start of an answer, within the last message, or the end of the messages."""
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
    """Input of the model's chat template beside the messages."""

    tools: tuple[dict[str, Any], ...] = ()
    """Function tools as OpenAI writes them."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """The template's own variables: `{"enable_thinking": False}`."""
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
    """A request's own parameters. For those that are None the model's `generation_config` counts, then the dialect.

    Ranges are checked by the dialect, so that an error names the field as the caller wrote it:
    max_new_tokens >= 1 (OpenAI's completions, too, refuse 0), 0 <= min_new_tokens <= max_new_tokens,
    temperature in [0, 2] for OpenAI and [0, MAX_TEMPERATURE] elsewhere (0 is greedy), top_k >= 0 (0 is off),
    top_p in (0, 1], min_p in [0, 1), seed in [0, 2**64), n in [1, 128], at most 16 stop strings of 1 to 1,000
    characters, repetition_penalty in (0, 10], presence_penalty and frequency_penalty in [-2, 2], logprobs in [0, 20],
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
    logprobs: int | None = None
    """Number of the most likely tokens to report beside each chosen one; None reports no log probabilities."""


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
    """The token's share of the text. None for a special token, which has none."""
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
