"""What the model's own files say about generation, and how a request, the model and the dialect together decide.

Plain JSON: it reads `generation_config.json` and `config.json` and imports no transformers. The fields are those of
transformers' GenerationConfig.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from container.core import MAX_TEMPERATURE, Item, Parameters
from container.engine.sequence import Sampling
from container.errors import InvalidRequest

SEEDS = 2**64
COLDEST = 1e-5
"""A colder request is greedy: there, 0.001 between two logits is a factor of e^100, and colder still they overflow."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


USABLE: dict[str, Callable[[Any], bool]] = {
    "do_sample": lambda value: isinstance(value, bool),
    "temperature": lambda value: _is_number(value) and 0 <= value <= MAX_TEMPERATURE,
    "top_k": lambda value: type(value) is int and value >= 0,
    "top_p": lambda value: _is_number(value) and 0 < value <= 1,
    "min_p": lambda value: _is_number(value) and 0 <= value < 1,
    "repetition_penalty": lambda value: _is_number(value) and 0 < value <= 10,
}
"""Fields of generation_config.json that we honour, and which of their values we understand."""

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "encoder_repetition_penalty": (1,),
    "length_penalty": (1,),
    "diversity_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "top_h": (0, 1),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "stop_strings": ([],),
    "watermarking_config": (),
}
"""Fields of generation_config.json that change the text and that we don't honour, with the values that don't."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """A model's defaults. None is what its files don't say.

    The model's `max_length` and `max_new_tokens` don't count: how long an answer may be is the server's to say.
    """

    eos_token_ids: tuple[int, ...] = ()
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    vocab_size: int | None = None
    """Rows of the model's embedding: token ids are below it."""
    warnings: tuple[str, ...] = ()
    """What the files ask for and doesn't happen, a sentence each, for the log."""

    @classmethod
    def load(cls, model_dir: str) -> Defaults:
        """Reads the two files; one that isn't there says nothing. ValueError if one is not a JSON object."""
        config = _read(Path(model_dir, "config.json"))
        text_config = config.get("text_config") or {}  # where models of text and images keep the language model's
        generation = _read(Path(model_dir, "generation_config.json"))
        vocab_size = _first("vocab_size", config, text_config)
        ends = _token_ids(_first("eos_token_id", generation, config, text_config))
        usable = {name: generation[name] for name, is_usable in USABLE.items() if is_usable(generation.get(name))}
        # Transformers calls a temperature of 0 an error that means greedy.
        greedy = usable.get("temperature") == 0
        return cls(
            eos_token_ids=tuple(token_id for token_id in ends if _is_token(token_id, vocab_size)),
            do_sample=False if greedy else usable.get("do_sample"),
            temperature=None if greedy else usable.get("temperature"),
            top_k=usable.get("top_k"),
            top_p=usable.get("top_p"),
            min_p=usable.get("min_p"),
            repetition_penalty=usable.get("repetition_penalty"),
            vocab_size=vocab_size,
            warnings=(*_warnings(generation), *_warnings_of_ends(ends, vocab_size)),
        )

    def resolve(
        self, item: Item, prompt_tokens: int, *, limit_tokens: int, default_max_new_tokens: int, drawn_seed: int
    ) -> tuple[Sampling, ...]:
        """How each of the item's n choices is sampled. `limit_tokens` bounds prompt and output together, and
        `drawn_seed` is for an item that is sampled and gives none.

        An explicit value wins over the model's generation_config, that over the dialect's default (as vLLM and, but for
        the dialect, transformers do). Choice i's seed is the first one's plus i, so that each can be asked for alone.
        Raises InvalidRequest where the lengths don't fit, or a token id is outside the vocabulary.
        """
        parameters = item.parameters
        sampling = Sampling(
            max_new_tokens=_max_new_tokens(item, prompt_tokens, limit_tokens, default_max_new_tokens),
            min_new_tokens=parameters.min_new_tokens,
            temperature=self._temperature(item),
            stop_token_ids=self._stop_token_ids(item),
            # These change scores, so they count for greedy choices too.
            repetition_penalty=_said(parameters.repetition_penalty, self.repetition_penalty, 1.0),
            presence_penalty=_said(parameters.presence_penalty, 0.0),
            frequency_penalty=_said(parameters.frequency_penalty, 0.0),
            logit_bias=self._logit_bias(item),
            logprobs=parameters.logprobs,
        )
        if sampling.min_new_tokens > sampling.max_new_tokens:
            name = item.name_of("min_new_tokens")
            message = f"{name} is {sampling.min_new_tokens}; at most {sampling.max_new_tokens} new tokens are generated"
            raise InvalidRequest(message, param=name)
        if sampling.temperature == 0:
            return (sampling,) * parameters.n
        return self._seeded(sampling, parameters, drawn_seed)

    def _seeded(self, sampling: Sampling, parameters: Parameters, drawn_seed: int) -> tuple[Sampling, ...]:
        first = drawn_seed if parameters.seed is None else parameters.seed
        sampling = msgspec.structs.replace(
            sampling,
            top_k=_said(parameters.top_k, self.top_k, 0),
            top_p=_said(parameters.top_p, self.top_p, 1.0),
            min_p=_said(parameters.min_p, self.min_p, 0.0),
        )
        return tuple(msgspec.structs.replace(sampling, seed=(first + choice) % SEEDS) for choice in range(parameters.n))

    def _temperature(self, item: Item) -> float:
        """0 is greedy. The model's values count wherever there is sampling, as in transformers.

        Unlike transformers, which then assumes a top_k of 50, top_k is off where nobody says anything.
        """
        if not self._samples(item):
            return 0.0
        temperature: float = _said(item.parameters.temperature, self.temperature, 1.0)
        return 0.0 if temperature < COLDEST else temperature

    def _samples(self, item: Item) -> bool:
        """`do_sample` has the last word; a sampling parameter without it asks for sampling, as in TGI and vLLM."""
        parameters = item.parameters
        if parameters.do_sample is not None:
            return parameters.do_sample
        asked = (parameters.temperature, parameters.top_k, parameters.top_p, parameters.min_p)
        if any(value is not None for value in asked):
            return True
        return item.sample_by_default if self.do_sample is None else self.do_sample

    def _stop_token_ids(self, item: Item) -> tuple[int, ...]:
        """The model's end-of-sequence tokens unless they are ignored, and the request's own, as in vLLM."""
        own = item.parameters.stop_token_ids
        self._check_token_ids(own, item.name_of("stop_token_ids"))
        return tuple(dict.fromkeys(own if item.parameters.ignore_eos else (*self.eos_token_ids, *own)))

    def _logit_bias(self, item: Item) -> tuple[tuple[int, float], ...]:
        biases = item.parameters.logit_bias or ()
        self._check_token_ids((token_id for token_id, _ in biases), item.name_of("logit_bias"))
        return biases

    def _check_token_ids(self, token_ids: Iterable[int], name: str) -> None:
        """The engine dies of an id that the model has no row for."""
        if self.vocab_size is not None and any(token_id >= self.vocab_size for token_id in token_ids):
            message = f"{name}: token ids must be below {self.vocab_size}, the vocabulary's size"
            raise InvalidRequest(message, param=name)


def _max_new_tokens(item: Item, prompt_tokens: int, limit_tokens: int, default: int) -> int:
    """What the request says, if there is room for it, else the smaller of the room and the server's default."""
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


def _read(path: Path) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object")
    return value


def _first(name: str, *files: Mapping[str, Any]) -> Any:
    return next((file[name] for file in files if file.get(name) is not None), None)


def _said(*values: Any) -> Any:
    """The first one that says something."""
    return next(value for value in values if value is not None)


def _token_ids(value: Any) -> tuple[int, ...]:
    """One id or a list of them, as transformers writes them."""
    return tuple(value) if isinstance(value, list) else () if value is None else (value,)


def _is_token(value: Any, vocab_size: int | None) -> bool:
    """The engine dies of an id that the model has no row for."""
    return type(value) is int and value >= 0 and (vocab_size is None or value < vocab_size)


def _warnings_of_ends(ends: Sequence[Any], vocab_size: int | None) -> list[str]:
    unknown = [token_id for token_id in ends if not _is_token(token_id, vocab_size)]
    return [f"eos_token_id: {token_id!r} is not in the model's vocabulary and has no effect" for token_id in unknown]


def _warnings(generation: Mapping[str, Any]) -> list[str]:
    given = {name: value for name, value in generation.items() if value is not None}
    misread = [name for name, is_usable in USABLE.items() if name in given and not is_usable(given[name])]
    unsupported = [name for name, neutral in UNSUPPORTED.items() if name in given and given[name] not in neutral]
    return [
        *(f"generation_config.json: {name} is out of range and has no effect" for name in misread),
        *(f"generation_config.json: {name} is not supported yet and has no effect" for name in unsupported),
    ]
