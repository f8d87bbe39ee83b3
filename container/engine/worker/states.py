"""The states of running sequences, and the modules that keep them, run sequence by sequence within a step.

A sequence's state goes on only in the order of its tokens, so that no page of the cache can hold it. Each sequence has
a cache of the library's own for it. Decoding sequences, with one token each, run together as one batch, whose states
stay together from step to step until another sequence joins or one leaves.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from container.engine.worker.forward_step import ForwardStep, Row, current
from container.engine.worker.layout import AXIS_OF_NONE, Axes, Layout, StateModule

_PLAIN = "_forward_outside_steps"
"""Attribute of a module that keeps its own forward pass."""


class MissingState(Exception):
    """A sequence is to go on, but what its layers have kept of it is not there."""


class SequenceStates:
    """Owns the states of the sequences of one batch."""

    def __init__(self, model: PreTrainedModel, layout: Layout) -> None:
        """Wrap the forward passes of the model's modules with a state: within a step they are run by sequence."""
        self._config: PretrainedConfig = model.config.get_text_config(decoder=True)
        self._layers = sorted({module.layer for module in layout.states if not module.is_indexer})
        self._own: dict[str, DynamicCache] = {}
        self._together: tuple[str, ...] = ()
        """Decoding sequences whose states are rows of one cache, in its order."""
        self._merged: DynamicCache | None = None
        for found in layout.states:
            _Stateful(model.get_submodule(found.name), found, self).wrap()

    def begin(self, step: ForwardStep, active: Collection[str]) -> None:
        """Make ready for a step. Raises MissingState.

        Sequences that are not `active` are gone. One that begins at its first token has no state yet: it is new, or is
        computed anew after a preemption.
        """
        self.keep(active)
        self._drop([row.request_id for row in step.rows if row.past == 0])
        known = {*self._own, *self._together}
        if lost := [row.request_id for row in step.rows if row.past and row.request_id not in known]:
            raise MissingState(f"{len(lost)} sequences have no state, the first is {lost[0]}")

    def keep(self, active: Collection[str]) -> None:
        """Free the states of all sequences but these."""
        self._drop([name for name in (*self._own, *self._together) if name not in active])

    def __len__(self) -> int:
        return len(self._own) + len(self._together)

    def of(self, sequence: str) -> DynamicCache:
        """Return the sequence's own cache, a new one if it has none."""
        if sequence in self._together:
            self._separate()
        if sequence not in self._own:
            self._own[sequence] = DynamicCache(config=self._config)
        return self._own[sequence]

    def of_all(self, sequences: tuple[str, ...]) -> DynamicCache:
        """Return one cache with a row for each of these sequences."""
        if sequences != self._together or self._merged is None:
            self._separate()
            self._merged = self._merge([self._own.pop(sequence) for sequence in sequences])
            self._together = sequences
        return self._merged

    def _drop(self, sequences: Sequence[str]) -> None:
        if any(sequence in self._together for sequence in sequences):
            self._separate()
        for sequence in sequences:
            self._own.pop(sequence, None)

    def _separate(self) -> None:
        """Give each sequence its own cache again, which is a view of its row."""
        if self._merged is None:
            return
        for row, sequence in enumerate(self._together):
            own = DynamicCache(config=self._config)
            for index in self._layers:
                own.layers[index] = _row(self._merged.layers[index], row)
            self._own[sequence] = own
        self._together, self._merged = (), None

    def _merge(self, caches: Sequence[DynamicCache]) -> DynamicCache:
        merged = DynamicCache(config=self._config)
        for index in self._layers:
            first, *rest = (cache.layers[index] for cache in caches)
            merged.layers[index] = _joined(first, rest)
        return merged


def _row(layer: Any, row: int) -> Any:
    return _with_states(layer, lambda state: state[row : row + 1])


def _with_states(layer: LinearAttentionCacheLayerMixin, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a copy of the layer with changed states."""
    changed = copy.copy(layer)
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layer, name)
        setattr(changed, name, {key: None if state is None else change(state) for key, state in states.items()})
    for name, value in vars(layer).items():  # flags by the number of the state: a copy's are its own
        if isinstance(value, dict) and name not in ("conv_states", "recurrent_states"):
            setattr(changed, name, dict(value))
    return changed


def _joined(first: Any, rest: Sequence[Any]) -> Any:
    joined = _with_states(first, lambda state: state)
    for name in ("conv_states", "recurrent_states"):
        for key, state in getattr(first, name).items():
            if state is not None:
                getattr(joined, name)[key] = torch.cat([state, *(getattr(layer, name)[key] for layer in rest)])
    return joined


class _Stateful:
    """One module with a state, in place of its forward pass."""

    def __init__(self, module: torch.nn.Module, found: StateModule, states: SequenceStates) -> None:
        # Another batch of the same model may have wrapped it: its wrapper would look for its own states.
        self._plain: Callable[..., Any] = module.__dict__.setdefault(_PLAIN, module.forward)
        self._module, self._found, self._states = module, found, states
        self._names = list(inspect.signature(type(module).forward).parameters)[1:]

    def wrap(self) -> None:
        self._module.forward = self.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        step = current.get()
        if step is None:
            return self._plain(*args, **kwargs)
        given = dict(zip(self._names, args, strict=False)) | kwargs
        if self._found.is_indexer:
            return self._pick(step, given)
        decoding = [row for row in step.rows if row.past and row.end - row.start == 1]
        if len(decoding) == len(step.rows):
            return self._decode(decoding, given, None)
        result: Any = None
        if decoding:
            tokens = torch.tensor([row.start for row in decoding], device=_device(given))
            result = _placed(None, self._decode(decoding, given, tokens), self._found.result, tokens, step.tokens)
        for row in step.rows:
            if not (row.past and row.end - row.start == 1):
                tokens = torch.arange(row.start, row.end, device=_device(given))
                result = _placed(result, self._prefill(row, given), self._found.result, tokens, step.tokens)
        return result

    def _decode(self, rows: Sequence[Row], given: dict[str, Any], tokens: torch.Tensor | None) -> Any:
        """Run single tokens as a batch. `tokens` are their places in the step; None: they are all of it, in order."""
        cache = self._states.of_all(tuple(row.request_id for row in rows))
        if tokens is None:
            tokens = torch.arange(len(rows), device=_device(given))
        result = self._plain(**(self._found.take(given, tokens) | self._found.fixed(cache, None)))
        return _as_step(result, self._found.result)

    def _prefill(self, row: Row, given: dict[str, Any]) -> Any:
        """Run one sequence's piece of a prompt."""
        cache = self._states.of(row.request_id)
        ends = self._found.piece_ends(row.start, row.end, past=row.past, prompt=row.prompt)
        starts = [row.start, *ends[:-1]]
        pieces = [
            self._plain(**(self._found.cut(given, start, end) | self._found.fixed(cache, None)))
            for start, end in zip(starts, ends, strict=True)
        ]
        return pieces[0] if len(pieces) == 1 else _concatenated(pieces, self._found.result)

    def _pick(self, step: ForwardStep, given: dict[str, Any]) -> torch.Tensor:
        """Have the indexer pick keys for each sequence. They go into the step: the result [1, T, picks] is padded."""
        picked = []
        for row in step.rows:
            queries, keys = row.end - row.start, row.past + row.end - row.start
            mask = torch.full((1, queries, keys), float("-inf"), device=_device(given)).triu(row.past + 1)
            cache = self._states.of(row.request_id)
            picks = self._plain(**(self._found.cut(given, row.start, row.end) | self._found.fixed(cache, mask)))
            picked.append(picks[0])
        step.picked = picked
        most = max(picks.shape[-1] for picks in picked)
        padded = [torch.nn.functional.pad(picks, (0, most - picks.shape[-1])) for picks in picked]
        return torch.cat(padded).unsqueeze(0)


def _device(given: dict[str, Any]) -> torch.device:
    return next(value.device for value in given.values() if isinstance(value, torch.Tensor))


def _as_step(result: Any, axes: Axes) -> Any:
    """Turn the results of a batch of single tokens, [B, 1, …], into those of a packed row, [1, B, …]."""
    if isinstance(axes, tuple):
        return tuple(_as_step(part, axis) for part, axis in zip(result, axes, strict=True))
    return result if axes == AXIS_OF_NONE else result.transpose(0, axes)


def _concatenated(pieces: Sequence[Any], axes: Axes) -> Any:
    if isinstance(axes, tuple):
        parts = zip(*pieces, strict=True)
        return tuple(_concatenated(part, axis) for part, axis in zip(parts, axes, strict=True))
    return pieces[-1] if axes == AXIS_OF_NONE else torch.cat(list(pieces), dim=axes)


def _placed(whole: Any, part: Any, axes: Axes, tokens: torch.Tensor, total: int) -> Any:
    """Put the results of some tokens into those of the whole step, which are made if there are none yet."""
    if isinstance(axes, tuple):
        wholes = whole if whole is not None else (None,) * len(axes)
        parts = zip(wholes, part, axes, strict=True)
        return tuple(_placed(one, other, axis, tokens, total) for one, other, axis in parts)
    if axes == AXIS_OF_NONE:
        return part
    if whole is None:
        whole = part.new_empty((*part.shape[:axes], total, *part.shape[axes + 1 :]))
    return whole.index_copy_(axes, tokens, part)
