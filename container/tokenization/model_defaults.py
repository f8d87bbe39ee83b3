"""A model's own defaults for generation, from its `generation_config.json` and `config.json`.

Their fields are those of transformers' GenerationConfig, but they are read as plain JSON, without transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from container.core import MAX_TEMPERATURE


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
"""Fields of generation_config.json that are honoured, and which of their values we understand."""

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
"""Fields of generation_config.json that change the text and are not honoured, with the values that don't change it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefaults:
    """A model's defaults; None if its files don't give any.

    The model's `max_length` and `max_new_tokens` don't count: the server's settings bound an answer's length.
    """

    eos_token_ids: tuple[int, ...] = ()
    eos_source: str = field(default="", compare=False)
    """File that names them, for the log."""
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    vocab_size: int | None = None
    """Rows of the model's embedding: token ids are below it."""
    warnings: tuple[str, ...] = ()
    """Fields that have no effect, a sentence each, for the log."""

    @classmethod
    def load(cls, model_dir: str) -> ModelDefaults:
        """Read the two files; a missing one gives no defaults. Raises ValueError if one is not a JSON object."""
        config = _read(Path(model_dir, "config.json"))
        text_config = config.get("text_config") or {}  # where models of text and images keep the language model's
        generation = _read(Path(model_dir, "generation_config.json"))
        vocab_size = _first("vocab_size", config, text_config)
        eos = _first("eos_token_id", generation, config, text_config)
        eos_source = "config.json" if generation.get("eos_token_id") is None else "generation_config.json"
        ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
        known_ends = tuple(token_id for token_id in ends if _is_token(token_id, vocab_size))
        given = {name: value for name, value in generation.items() if value is not None}
        usable = {name: given[name] for name, is_usable in USABLE.items() if name in given and is_usable(given[name])}
        unusable = [name for name in USABLE if name in given and name not in usable]
        unsupported = [name for name, neutral in UNSUPPORTED.items() if name in given and given[name] not in neutral]
        unknown_ends = [token_id for token_id in ends if not _is_token(token_id, vocab_size)]
        warnings = (
            *(f"generation_config.json: {name} is out of range and has no effect" for name in unusable),
            *(f"generation_config.json: {name} is not supported yet and has no effect" for name in unsupported),
            *(f"eos_token_id: {end!r} is not in the model's vocabulary and has no effect" for end in unknown_ends),
        )
        if usable.get("temperature") == 0:  # transformers calls this an error that means greedy
            usable |= {"do_sample": False, "temperature": None}
        return cls(eos_token_ids=known_ends, eos_source=eos_source, vocab_size=vocab_size, warnings=warnings, **usable)

    def with_end_token(self, token_id: int | None) -> ModelDefaults:
        """Let another token end texts, too: the tokenizer names one that the two files need not repeat."""
        ends = () if token_id is None else (token_id,)
        return replace(self, eos_token_ids=tuple(dict.fromkeys((*self.eos_token_ids, *ends))))


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


def _is_token(value: Any, vocab_size: int | None) -> bool:
    """Whether the model has a row for an id: the engine would die of any other."""
    return type(value) is int and value >= 0 and (vocab_size is None or value < vocab_size)
