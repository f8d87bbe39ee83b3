"""The demands of a model's step on the engine: its attention calls, in their order, and its modules that keep a state.

Found by a small forward pass at load (`probe.py`), it decides the layout of the cache. Nothing here knows the names of
models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

FULL = "full_attention"
SLIDING = "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """One attention call of a step. Most models make one in each layer; some two, some none in most layers.

    The cache has a place for each call, by its number in the step, whatever layer it belongs to.
    """

    kind: str
    """Allocator of its keys and values: FULL or SLIDING."""
    query_heads: int
    key_heads: int
    key_size: int
    """Elements of a head's query or key."""
    value_size: int
    """Elements of a head's value: other than `key_size` in multi-head latent attention."""
    window: int | None = None
    """Number of last keys that a query sees, itself among them; None: all."""
    chunk: int | None = None
    """Number of positions in a chunk, of which a query sees its own alone (Llama 4); None: no chunks."""
    softcap: float | None = None
    has_sinks: bool = False
    """Whether each head has a learnt score that takes part in the softmax without a value (gpt-oss)."""
    is_indexed: bool = False
    """Whether an indexer picks the keys that each query sees (DeepSeek V3.2)."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Heads of the queries, heads of keys and values, sizes of a key and of a value."""
        return self.query_heads, self.key_heads, self.key_size, self.value_size


Axes = int | tuple["Axes", ...]
"""Axis of a tensor on which the step's tokens lie, or AXIS_OF_NONE; of a tuple's parts one by one."""
AXIS_OF_NONE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class StateModule:
    """A module that keeps something of a sequence from step to step, in a layer of transformers' cache.

    Its tensors have sequences on their first axis, and there one sequence.
    """

    name: str
    """Path in the model, as `get_submodule` takes it."""
    layer: int
    """Index of its layer in the cache."""
    is_indexer: bool = False
    """Whether it keeps keys that it picks from; else it is recurrent or a convolution."""
    takes_single_tokens: bool = False
    """Whether it forgets its state over a later piece of a prompt, and so must be given one token at a time."""
    decodes_otherwise: bool = False
    """Whether a token alone gives other results than within a piece: what was decoded is then decoded again."""
    cache_name: str
    """Name of the argument that takes the cache."""
    takes_mask: bool
    """Whether it is given an `attention_mask`."""
    arguments: Mapping[str, Axes]
    """Axis of the tokens in each of its other arguments, by name."""
    result: Axes

    def cut(self, given: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
        """Return the arguments of the tokens [start, end) alone."""
        return {name: _cut(given.get(name), axes, start, end) for name, axes in self.arguments.items()}

    def take(self, given: Mapping[str, Any], tokens: torch.Tensor) -> dict[str, Any]:
        """Return the arguments of these tokens [B], each as a sequence of its own."""
        return {name: _take(given.get(name), axes, tokens) for name, axes in self.arguments.items()}

    def fixed(self, cache: Any, mask: torch.Tensor | None) -> dict[str, Any]:
        """Return the arguments that have no tokens to cut."""
        return {self.cache_name: cache} | ({"attention_mask": mask} if self.takes_mask else {})

    def piece_ends(self, start: int, end: int, *, past: int, prompt: int) -> list[int]:
        """Return the ends of the pieces to run the tokens [start, end) of a step in, behind `past` earlier ones.

        The sequence's first `prompt` tokens are its prompt's; the others were decoded before, and are computed anew.
        """
        if self.takes_single_tokens and past:
            return list(range(start + 1, end + 1))
        if self.decodes_otherwise:
            decoded = min(end, max(start, start + prompt - past))
            return [*([decoded] if decoded > start else []), *range(decoded + 1, end + 1)]
        return [end]


def _cut(given: Any, axes: Axes, start: int, end: int) -> Any:
    if isinstance(axes, tuple):
        return tuple(_cut(part, axis, start, end) for part, axis in zip(given, axes, strict=True))
    return given if axes == AXIS_OF_NONE or given is None else given.narrow(axes, start, end - start)


def _take(given: Any, axes: Axes, tokens: torch.Tensor) -> Any:
    if isinstance(axes, tuple):
        return tuple(_take(part, axis, tokens) for part, axis in zip(given, axes, strict=True))
    if axes == AXIS_OF_NONE or given is None:
        return given
    return given.index_select(axes, tokens).transpose(0, axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallGroup:
    """The calls that share an allocator. A token has a row for its keys and one for its values in each call's place."""

    kind: str
    numbers: tuple[int, ...]
    """Numbers of the calls in a step."""
    heads: int
    size: int
    """Elements of a head. A row is `heads` times as long; where the calls differ, it is one head of the most of all."""
    window: int | None

    @property
    def elements_per_token(self) -> int:
        return 2 * self.heads * self.size * len(self.numbers)


@dataclass(frozen=True, kw_only=True)
class Layout:
    calls: tuple[AttentionCall, ...]
    states: tuple[StateModule, ...] = ()
    state_bytes: int = 0
    """Bytes of one sequence's recurrent and convolution states, in all layers."""
    index_bytes_per_token: int = 0
    """Bytes of one token's keys in all indexers."""

    @property
    def shares_prefixes(self) -> bool:
        """Whether prompts that begin alike may share pages: not where a state goes with them."""
        return not self.states

    @cached_property
    def groups(self) -> tuple[CallGroup, ...]:
        """Groups in the order of their first calls; at least one, because the scheduler counts pages."""
        if not self.calls:
            return (_NO_CALLS,)
        kinds = dict.fromkeys(call.kind for call in self.calls)
        return tuple(_group(kind, self.calls) for kind in kinds)

    @property
    def elements_per_token(self) -> int:
        """Elements of one token's keys and values in all calls."""
        return sum(group.elements_per_token for group in self.groups)

    @property
    def places_of_largest_size(self) -> float:
        """Number of calls, counted in such as the one with the largest keys and values."""
        return self.elements_per_token / max(2 * group.heads * group.size for group in self.groups)


_NO_CALLS = CallGroup(kind=FULL, numbers=(0,), heads=1, size=8, window=None)


def _group(kind: str, calls: tuple[AttentionCall, ...]) -> CallGroup:
    numbers = tuple(number for number, call in enumerate(calls) if call.kind == kind)
    own = [calls[number] for number in numbers]
    shapes = {(call.key_heads, size) for call in own for size in (call.key_size, call.value_size)}
    heads, size = shapes.pop() if len(shapes) == 1 else (1, max(heads * size for heads, size in shapes))
    return CallGroup(kind=kind, numbers=numbers, heads=heads, size=size, window=own[0].window)
