"""The pages of the KV cache: how many blocks sequences need and hold, and whether there is room.

The cache is made of sectors, each cut into blocks for one kind of layers (full or sliding attention).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Set

from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import RequestState

UNSHARED = "unshared"
"""Key in a sequence's `logit_processor_kwargs`, which outlive a preemption: true if it has blocks of its own alone."""

BlockCounts = Mapping[str, int]
"""Numbers of blocks, by kind of layers."""
Blocks = Mapping[str, Set[int]]
"""Indices of blocks, by kind of layers."""


class CachePages:
    """Counts blocks, and frees those that no sequence holds or whose content is not to be used again."""

    def __init__(self, cache: PagedAttentionCache) -> None:
        self._cache = cache
        self._kinds = cache.cache_allocators

    def needed(self, state: RequestState, tokens: int) -> BlockCounts:
        """Return the blocks that the sequence needs for `tokens` more tokens."""
        return {
            kind: allocator.needs_new_blocks(state.request_id, state.current_len(), tokens)
            for kind, allocator in self._kinds.items()
        }

    def shared(self, state: RequestState) -> Blocks:
        """Return the blocks of a waiting prompt that are in the cache already."""
        if not self._cache.use_prefix_sharing or not shares_blocks(state):
            return {}
        return {
            kind: set(allocator.match_prefix_blocks(state.remaining_prefill_tokens))
            for kind, allocator in self._kinds.items()
        }

    def held(self, states: Iterable[RequestState]) -> Blocks:
        """Return the blocks that become free if all of these sequences end."""
        ids = [state.request_id for state in states]
        held = {}
        for kind, allocator in self._kinds.items():
            holders = Counter(block for id in ids for block in allocator.block_table.get(id, ()))
            all_holders = allocator.ledger.shared_ref_counts
            held[kind] = {block for block, number in holders.items() if number >= all_holders.get(block, 1)}
        return held

    def cached(self) -> Blocks:
        """Return the blocks that no sequence holds, kept for prompts that begin alike."""
        return {kind: allocator.ledger.cached_blocks.keys() for kind, allocator in self._kinds.items()}

    def upper_bound(self, sequences: int, tokens: int) -> BlockCounts:
        """Return the most blocks that so many sequences can need for `tokens` more tokens in all."""
        return {kind: sequences + tokens // allocator.tokens_per_page for kind, allocator in self._kinds.items()}

    def have_room(self, needed: BlockCounts, *, margin: float = 0.0) -> bool:
        """Tell whether these blocks are free, and a share `margin` of the whole cache beyond them."""
        spare = math.ceil(margin * self._cache.num_sectors)
        first = next(iter(self._kinds))
        wanted = dict(needed)
        wanted[first] = wanted.get(first, 0) + spare * self._kinds[first].blocks_per_sector
        return bool(self._cache.count_storable_requests([wanted]) == 1)

    def may_be_shared(self, state: RequestState) -> bool:
        """Tell whether any block of the sequence may have been computed by another one that begins alike."""
        filled = any(state.current_len() >= allocator.tokens_per_page for allocator in self._kinds.values())
        return bool(self._cache.use_prefix_sharing) and filled and shares_blocks(state)

    def discard(self, state: RequestState) -> None:
        """Free the sequence's blocks. None of them is shared with a later one, not even those that others hold."""
        for allocator in self._kinds.values():
            ledger = allocator.ledger
            for block in allocator.block_table.get(state.request_id, ()):
                if (content := ledger.block_to_hash.pop(block, None)) is not None:
                    del ledger.hash_to_block[content]
        self._cache.free_blocks(state.request_id, no_cache=True)

    def evict_cached(self) -> None:
        """Free the blocks that are only kept for sharing."""
        self._cache.evict_cached_blocks()
        self.free_sectors()

    def free_sectors(self) -> None:
        """Give sectors without a block in use back to the pool, for any kind of layers."""
        self._cache.pool.try_to_free_sectors()


def shares_blocks(state: RequestState) -> bool:
    """Whether the sequence takes blocks that others have computed, and leaves its own to others."""
    return not state.logit_processor_kwargs.get(UNSHARED)


def total(counts: Iterable[BlockCounts]) -> BlockCounts:
    summed: Counter[str] = Counter()
    for numbers in counts:
        summed.update(numbers)
    return summed


def minus(counts: BlockCounts, less: BlockCounts) -> BlockCounts:
    return {kind: number - less.get(kind, 0) for kind, number in counts.items()}


def count(blocks: Blocks, *, except_for: Blocks | None = None) -> BlockCounts:
    """Return the numbers of blocks, those in `except_for` not counted."""
    return {
        kind: len(indices - except_for.get(kind, set()) if except_for else indices) for kind, indices in blocks.items()
    }
