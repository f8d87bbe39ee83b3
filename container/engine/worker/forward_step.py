"""The step under way: what attention and the modules with a state need to know of it.

It is set around the model's forward pass, because not all layers hand the pass's arguments on.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation.continuous_batching.cache import PagedAttentionCache


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of the step: tokens [start, end) of the packed row, behind `past` earlier ones."""

    request_id: str
    start: int
    end: int
    past: int


@dataclass(slots=True, kw_only=True)
class ForwardStep:
    rows: tuple[Row, ...]
    """In the order of the packed row."""
    cache: PagedAttentionCache
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
    """What attention has worked out for this step, by what it depends on."""
    picked: list[torch.Tensor] | None = None
    """Positions of the keys that the last indexer picked, [queries, keys] for each row of `rows`."""

    @property
    def tokens(self) -> int:
        return self.query_starts[-1]


current: ContextVar[ForwardStep | None] = ContextVar("current", default=None)
"""None outside a step of the batch: a forward pass is then the library's own."""
