"""The number of tokens that a model's positions reach, as transformers reads its configuration.

It knows no weights: with rotary positions, the same weights reach further under another scaling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

_BATCH_DEPENDENT = "beyond that, its {} scaling depends on the longest sequence of a batch"


@dataclass(frozen=True, slots=True)
class ContextLength:
    """Most tokens of a sequence, prompt and output; None if the configuration doesn't tell."""

    tokens: int | None
    reason: str = ""
    """Cause of another length than the configuration's `max_position_embeddings`."""
    is_cut: bool = False
    """Whether the model alone, outside a batch, would go on."""


def context_length(config: PretrainedConfig) -> ContextLength:
    """Return the length that all of the model's layers reach: the shortest, where kinds of layers scale differently."""
    written: int | None = getattr(config, "max_position_embeddings", None)
    if written is None:
        return ContextLength(None)
    reached = [_reached(written, rope) for rope in _rope_parameters(config)]
    return min(reached, key=lambda length: length.tokens or 0, default=ContextLength(written))


def _rope_parameters(config: PretrainedConfig) -> Iterator[Mapping[str, Any]]:
    """Yield the parameters of each kind of layer: most models have one for all, Gemma 3 has two."""
    parameters: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = [part for part in parameters.values() if isinstance(part, Mapping)]
    yield from nested or ([parameters] if parameters else [])


def _reached(written: int, rope: Mapping[str, Any]) -> ContextLength:
    """Return how far these parameters reach, where `max_position_embeddings` is `written`.

    With YaRN it may be the length before scaling (Qwen 2.5, whose README adds four lines to config.json) or after it
    (DeepSeek): `original_max_position_embeddings` tells, or else it is the one before. With linear scaling it is the
    one before, as transformers has it. With Llama 3's it is the one after.
    """
    kind = rope.get("rope_type")
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    if kind == "longrope" and original:
        # Past this length the library takes other rotary factors, and takes them for a whole step: one long sequence
        # would change the results of all that run beside it.
        return ContextLength(int(original), _BATCH_DEPENDENT.format(kind), is_cut=True)
    if kind == "dynamic":
        # The same: the base grows with the longest sequence, and stays grown for the shorter ones after it.
        return ContextLength(written, _BATCH_DEPENDENT.format(kind), is_cut=True)
    if kind in ("yarn", "linear") and factor and (scaled := round((original or written) * factor)) > written:
        return ContextLength(scaled, f"{original or written} times the {kind} scaling's factor of {factor:g}")
    return ContextLength(written)
