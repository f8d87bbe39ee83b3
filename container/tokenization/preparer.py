"""An item made ready for the engine: tokenized, checked, its parameters settled. It knows no requests and no engine."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from container.core import Completion, Item
from container.engine.sequence import Sampling
from container.tokenization.model_defaults import Defaults
from container.tokenization.tokenizer import Tokenizer


class Prepared(msgspec.Struct, frozen=True, kw_only=True, tag="prepared"):
    """An item, tokenized and checked, ready for the engine. A reader sends it as it is."""

    prompt_ids: array  # type: ignore[type-arg]  # Python 3.11 has no array[int] at run time, where msgspec wants it
    """An array takes a tenth of a list's memory."""
    prompt_text: str
    """The prompt as the model sees it, chat template applied."""
    samplings: tuple[Sampling, ...]
    stop: tuple[str, ...]
    has_random_seed: bool = False
    """Whether it is sampled with a seed that the request doesn't give: then it has no equal."""


def unstarted(samplings: Iterable[Sampling]) -> tuple[Completion, ...]:
    """What becomes of an item that the deadline leaves no time for."""
    return tuple(
        Completion(
            text="",
            token_ids=(),
            finish_reason="deadline",
            seed=seed_of(sampling),
            logprobs=None if sampling.logprobs is None else (),
        )
        for sampling in samplings
    )


def seed_of(sampling: Sampling) -> int | None:
    """The seed that an answer tells."""
    return sampling.seed if sampling.temperature > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparer:
    """Shared, and changed by nobody. `max_sequence_tokens` is what the engine holds, prompt and answer together."""

    tokenizer: Tokenizer
    defaults: Defaults
    max_sequence_tokens: int
    default_max_new_tokens: int

    def prepare(self, item: Item, drawn_seed: int) -> Prepared:
        """Takes as long as the prompt: for a worker thread. Raises InvalidRequest."""
        limit = self.max_sequence_tokens
        prompt = self.tokenizer.encode(
            item.prompt, param=item.param, max_tokens=limit, tools_param=item.name_of("tools")
        )
        samplings = self.defaults.resolve(
            item,
            len(prompt.ids),
            limit_tokens=limit,
            default_max_new_tokens=self.default_max_new_tokens,
            drawn_seed=drawn_seed,
        )
        return Prepared(
            prompt_ids=array("I", prompt.ids),
            prompt_text=prompt.text,
            samplings=samplings,
            stop=item.parameters.stop,
            has_random_seed=samplings[0].temperature > 0 and item.parameters.seed is None,
        )
