"""A sequence: one prompt and the tokens generated from it, owned by the server process."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

FinishReason = Literal["stop", "length"]
"""`stop`: a stop token was generated (it is the last output token). `length`: `max_new_tokens` was reached."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose a sequence's tokens. The server has checked the values.

    `temperature` 0 is greedy and makes `top_k`, `top_p`, `min_p` and `seed` irrelevant. `top_k` 0, `top_p` 1 and
    `min_p` 0 are off. `seed` is an unsigned 64-bit integer. Stop tokens are not generated before `min_new_tokens`.
    Penalties and `logit_bias`, pairs of token id and amount, change the scores of greedy sequences too.
    `logprobs` is how many of the most likely tokens to report beside the chosen one; None: no log probability at all.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural log probabilities at one position: the chosen token's, and those of the most likely tokens by id."""

    logprob: float
    top: list[tuple[int, float]] = []


class EngineError(Exception):
    """The engine could not finish a sequence.

    `code` is `engine_failed` or `engine_stopped`; where the engine goes on without this sequence, `sequence_failed` or
    `engine_killed_by_item`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt on its way through the engine, which only reports tokens: `EngineClient` appends them here.

    It outlives the engine: another one goes on behind its tokens.

    `on_tokens(n)` is called on the event loop after `n` new tokens were appended and `finish_reason` was set;
    `on_error(error)` once, if the engine can't finish the sequence. After either end, neither is called again.
    """

    prompt_ids: array[int]
    sampling: Sampling
    owner: Hashable = field(kw_only=True)
    """Owner of the sequence: owners take turns at admission."""
    on_tokens: Callable[[int], None] = field(kw_only=True)
    on_error: Callable[[EngineError], None] = field(kw_only=True)
    id: int = field(default=-1, init=False)
    """Number assigned at submission, unique for the life of the server."""
    output_ids: list[int] = field(default_factory=list, init=False)
    logprobs: list[TokenLogprobs] = field(default_factory=list, init=False)
    """One for each output id, if `sampling` asks for them."""
    finish_reason: FinishReason | None = field(default=None, init=False)

    @property
    def max_tokens(self) -> int:
        """Most tokens that prompt and output can have."""
        return len(self.prompt_ids) + self.sampling.max_new_tokens
