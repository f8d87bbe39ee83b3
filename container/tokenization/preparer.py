"""Items made ready for the engine: tokenized and checked, with every parameter settled.

It knows no requests and no engine. A value of the request wins over the model's generation_config, that over the
dialect's default, as in vLLM and, but for the dialect, in transformers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from container.core import Completion, Item
from container.engine.sequence import Sampling
from container.errors import InvalidRequest
from container.tokenization.model_defaults import ModelDefaults
from container.tokenization.tokenizer import Tokenizer

MIN_TEMPERATURE = 1e-5
"""A colder request is greedy: there, 0.001 between two logits is a factor of e^100, and colder still they overflow."""


class Prepared(msgspec.Struct, frozen=True, kw_only=True, tag="prepared"):
    """An item, tokenized and checked, ready for the engine. A reader sends it as it is."""

    prompt_ids: array  # type: ignore[type-arg]  # Python 3.11 has no array[int] at run time, where msgspec wants it
    """Token ids in an array, which takes a tenth of a list's memory."""
    prompt_text: str
    """The prompt as the model sees it, chat template applied."""
    samplings: tuple[Sampling, ...]
    """A sampling for each of the item's choices."""
    stop: tuple[str, ...]
    skips_special_tokens: bool | None = None
    """Whether the text leaves out special tokens; None: but for those that mark something."""
    includes_stop: bool | None = None
    """Whether the text ends with what stopped it; None leaves out stop strings and special tokens, but no other one."""
    has_random_seed: bool = False
    """Whether it is sampled with a seed that the request doesn't give: then it has no equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparer:
    """Shared by all worker threads. `max_sequence_tokens` is what the engine holds, prompt and answer together."""

    tokenizer: Tokenizer
    defaults: ModelDefaults
    max_sequence_tokens: int
    default_max_new_tokens: int

    def prepare(self, item: Item, random_seed: int, clock: float | None = None) -> Prepared:
        """Prepare an item; `random_seed` is for one that is sampled and gives no seed, `clock` for a chat's template.

        It takes as long as the prompt, so call it in a worker thread. Raises InvalidRequest.
        """
        limit, keep = self.max_sequence_tokens, item.parameters.truncate_prompt_tokens
        if keep == -1:  # beside an answer as long as it is asked for
            keep = max(1, limit - (item.parameters.max_new_tokens or max(1, item.parameters.min_new_tokens)))
        self._validate_spaces(item)
        parameters = item.parameters
        prompt = self.tokenizer.encode(
            item.prompt,
            param=item.param,
            max_tokens=limit,
            keep=keep,
            clock=clock,
            adds_special_tokens=parameters.add_special_tokens,
            skips_special_tokens=parameters.skip_special_tokens,
        )
        # A stop string that is a special token stands for the token: most texts don't show it.
        stop_ids = (*parameters.stop_token_ids, *self.tokenizer.special_token_ids(parameters.stop))
        item = replace(item, parameters=replace(parameters, stop_token_ids=stop_ids))
        samplings = resolve(
            item,
            self.defaults,
            prompt_tokens=len(prompt.ids),
            limit_tokens=limit,
            default_max_new_tokens=self.default_max_new_tokens,
            random_seed=random_seed,
        )
        return Prepared(
            prompt_ids=array("I", prompt.ids),
            prompt_text=prompt.text,
            samplings=samplings,
            stop=parameters.stop,
            skips_special_tokens=parameters.skip_special_tokens,
            includes_stop=parameters.include_stop_str_in_output,
            has_random_seed=samplings[0].temperature > 0 and parameters.seed is None,
        )

    def _validate_spaces(self, item: Item) -> None:
        """Raise InvalidRequest if a text is to have no spaces where the tokenizer has some."""
        parameters = item.parameters
        is_refused = parameters.spaces_between_special_tokens is False and parameters.skip_special_tokens is False
        if is_refused and self.tokenizer.spaces_special_tokens:
            name = item.name_of("spaces_between_special_tokens")
            message = f"{name} can't be false, as this model's tokenizer puts spaces there: leave it out or give true"
            raise InvalidRequest(message, param=name, code="unsupported_parameter")


def resolve(
    item: Item,
    defaults: ModelDefaults,
    *,
    prompt_tokens: int,
    limit_tokens: int,
    default_max_new_tokens: int,
    random_seed: int,
) -> tuple[Sampling, ...]:
    """Return how each of the item's choices is sampled. `limit_tokens` bounds prompt and output together.

    Choice i's seed is the first one's plus i, so that each can be asked for alone. Raises InvalidRequest if the lengths
    don't fit, or a token id is outside the vocabulary.
    """
    parameters = item.parameters
    _validate_token_ids(item, defaults, "stop_token_ids", parameters.stop_token_ids)
    # As in vLLM, the model's end-of-sequence tokens stop a text unless they are ignored.
    ends = () if parameters.ignore_eos else defaults.eos_token_ids
    sampling = Sampling(
        max_new_tokens=_max_new_tokens(item, prompt_tokens, limit_tokens, default_max_new_tokens),
        min_new_tokens=parameters.min_new_tokens,
        temperature=_temperature(item, defaults),
        stop_token_ids=tuple(dict.fromkeys((*ends, *parameters.stop_token_ids))),
        # These change scores, so they count for greedy choices too.
        repetition_penalty=_first(parameters.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=_first(parameters.presence_penalty, 0.0),
        frequency_penalty=_first(parameters.frequency_penalty, 0.0),
        logit_bias=parameters.logit_bias or (),
        logprobs=parameters.logprobs,
    )
    _validate_token_ids(item, defaults, "logit_bias", (token_id for token_id, _ in sampling.logit_bias))
    if sampling.min_new_tokens > sampling.max_new_tokens:
        name = item.name_of("min_new_tokens")
        message = f"{name} is {sampling.min_new_tokens}; at most {sampling.max_new_tokens} new tokens are generated"
        raise InvalidRequest(message, param=name)
    if sampling.temperature == 0:
        return (sampling,) * parameters.n
    first_seed = _first(parameters.seed, random_seed)
    sampling = msgspec.structs.replace(
        sampling,
        top_k=_first(parameters.top_k, defaults.top_k, 0),
        top_p=_first(parameters.top_p, defaults.top_p, 1.0),
        min_p=_first(parameters.min_p, defaults.min_p, 0.0),
    )
    seeds = ((first_seed + choice) % 2**64 for choice in range(parameters.n))
    return tuple(msgspec.structs.replace(sampling, seed=seed) for seed in seeds)


def unstarted_completions(samplings: Iterable[Sampling]) -> tuple[Completion, ...]:
    """Return the completions of an item that could not be started before the deadline."""
    return tuple(
        Completion(
            text="",
            token_ids=(),
            finish_reason="deadline",
            seed=sampling.seed if sampling.temperature > 0 else None,
            logprobs=None if sampling.logprobs is None else (),
        )
        for sampling in samplings
    )


def _max_new_tokens(item: Item, prompt_tokens: int, limit_tokens: int, default: int) -> int:
    """Return the request's own limit if there is room for it, else the smaller of the room and the server's default."""
    room = limit_tokens - prompt_tokens
    asked = item.parameters.max_new_tokens
    if room < 1:
        message = f"{item.param}: prompt has {prompt_tokens} tokens; the model holds {limit_tokens}, answer included"
        raise InvalidRequest(message, param=item.param, code="context_length_exceeded")
    if asked is not None and asked > room:
        name = item.name_of("max_new_tokens")
        message = f"{name} is {asked}; beside the prompt's {prompt_tokens} tokens the model holds {room} more"
        raise InvalidRequest(f"{message} ({limit_tokens} in all)", param=name, code="context_length_exceeded")
    return min(room, default) if asked is None else asked


def _temperature(item: Item, defaults: ModelDefaults) -> float:
    """Return 0 for greedy. `do_sample` has the last word; without it, any sampling parameter asks for sampling.

    The model's values count wherever there is sampling, as in transformers, which would then assume a top_k of 50:
    here top_k is off unless the request or the model gives one.
    """
    asked = item.parameters
    is_sampled = asked.do_sample
    if is_sampled is None:
        has_options = any(value is not None for value in (asked.temperature, asked.top_k, asked.top_p, asked.min_p))
        is_sampled = has_options or _first(defaults.do_sample, item.sample_by_default)
    temperature: float = _first(asked.temperature, defaults.temperature, 1.0) if is_sampled else 0.0
    return 0.0 if temperature < MIN_TEMPERATURE else temperature


def _validate_token_ids(item: Item, defaults: ModelDefaults, parameter: str, token_ids: Iterable[int]) -> None:
    """Raise InvalidRequest for an id that the model has no row for: it would kill the engine."""
    if defaults.vocab_size is not None and any(token_id >= defaults.vocab_size for token_id in token_ids):
        name = item.name_of(parameter)
        message = f"{name}: token ids must be below {defaults.vocab_size}, the vocabulary's size"
        raise InvalidRequest(message, param=name)


def _first(*values: Any) -> Any:
    """Return the first value that is given."""
    return next((value for value in values if value is not None), None)
