"""The step under way: what attention and the modules with a state need to know of it.

It is set around the model's forward pass, because not all layers hand the pass's arguments on.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from transformers.generation.continuous_batching.requests import FutureRequestState

from container.engine.worker.paged_cache import PagedCache


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of the step: tokens [start, end) of the packed row, behind `past` earlier ones."""

    request_id: str
    start: int
    end: int
    past: int
    prompt: int
    """Tokens of its prompt: later ones were generated, even if they are computed anew."""


@dataclass(slots=True, kw_only=True)
class ForwardStep:
    rows: tuple[Row, ...]
    """Sequences in the order of the packed row."""
    cache: PagedCache
    read_index: list[torch.Tensor]
    """Places in the cache to read, by the index of the allocator."""
    write_index: list[torch.Tensor]
    query_starts: list[int]
    """Cumulative lengths [N + 1]."""
    key_starts: dict[str, list[int]]
    """Cumulative lengths [N + 1], by the kind of allocator."""
    arguments: dict[str, Any]
    """The library's own arguments of the pass, with the lengths as tensors."""
    calls_made: int = 0
    """Attention calls so far: the number of the next one."""
    plans: dict[Any, Any] = field(default_factory=dict)
    """Plans that attention has made for this step, by what they depend on."""
    picked: list[torch.Tensor] | None = None
    """Positions of the keys that the last indexer picked, [queries, keys] for each row of `rows`."""

    @property
    def tokens(self) -> int:
        return self.query_starts[-1]


current: ContextVar[ForwardStep | None] = ContextVar("current", default=None)
"""None outside a step of the batch: a forward pass is then the library's own."""


def describe_step(arguments: dict[str, Any], sequences: Iterable[FutureRequestState]) -> ForwardStep:
    """Describe the forward pass that the library is about to make for `sequences` with these arguments."""
    cache: PagedCache = arguments["cache"]
    rows, end = [], 0
    for future in sequences:
        start, end = end, end + future.query_length
        state = future.state
        past, prompt = state.position_offset - future.query_length, state.logit_processor_kwargs["prompt_tokens"]
        rows.append(Row(state.request_id, start, end, past, prompt))
    key_starts = {
        kind: list(accumulate((allocator.get_seqlen_k(row.past, row.end - row.start) for row in rows), initial=0))
        for kind, allocator in cache.cache_allocators.items()
    }
    return ForwardStep(
        rows=tuple(rows),
        cache=cache,
        read_index=arguments["read_index"],
        write_index=arguments["write_index"],
        query_starts=[0, *(row.end for row in rows)],
        key_starts=key_starts,
        arguments=arguments,
    )
