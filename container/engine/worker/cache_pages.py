"""The pages of the KV cache: what sequences need of each kind of layers, hold of it, and whether there is room."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Set

from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import RequestState

Pages = Mapping[str, int]
"""How many of each kind of layers' blocks."""
Blocks = Mapping[str, Set[int]]
"""Which."""


class CachePages:
    """Counts only; what it changes at most is to give up blocks that nobody holds and are kept for sharing."""

    def __init__(self, cache: PagedAttentionCache) -> None:
        self._cache = cache
        self._kinds = cache.cache_allocators

    def needed(self, state: RequestState, tokens: int) -> Pages:
        """For so many more tokens of it."""
        return {
            kind: allocator.needs_new_blocks(state.request_id, state.current_len(), tokens)
            for kind, allocator in self._kinds.items()
        }

    def shared(self, state: RequestState) -> Blocks:
        """What of a waiting prompt is in the cache already."""
        if not self._cache.use_prefix_sharing:
            return {}
        return {
            kind: set(allocator.match_prefix_blocks(state.remaining_prefill_tokens))
            for kind, allocator in self._kinds.items()
        }

    def held(self, states: Iterable[RequestState]) -> Blocks:
        """What becomes free if all of these end."""
        ids = [state.request_id for state in states]
        held = {}
        for kind, allocator in self._kinds.items():
            holders = Counter(block for id in ids for block in allocator.block_table.get(id, ()))
            all_holders = allocator.ledger.shared_ref_counts
            held[kind] = {block for block, number in holders.items() if number >= all_holders.get(block, 1)}
        return held

    def cached(self) -> Blocks:
        """What nobody holds and is kept for prompts that begin alike."""
        return {kind: allocator.ledger.cached_blocks.keys() for kind, allocator in self._kinds.items()}

    def at_most(self, sequences: int, tokens: int) -> Pages:
        """No so many sequences need more for so many tokens."""
        return {kind: sequences + tokens // allocator.tokens_per_page for kind, allocator in self._kinds.items()}

    def have_room(self, needed: Pages, *, margin: float = 0.0) -> bool:
        """Whether this is free, and a share `margin` of the whole cache beyond it."""
        spare = math.ceil(margin * self._cache.num_sectors)
        first = next(iter(self._kinds))
        wanted = dict(needed)
        wanted[first] = wanted.get(first, 0) + spare * self._kinds[first].blocks_per_sector
        return bool(self._cache.count_storable_requests([wanted]) == 1)

    def give_up_cached(self) -> None:
        self._cache.evict_cached_blocks()
        self.free_sectors()

    def free_sectors(self) -> None:
        """Those without a block in use are for any kind of layers then."""
        self._cache.pool.try_to_free_sectors()


def total(pages: Iterable[Pages]) -> Pages:
    summed: Counter[str] = Counter()
    for some in pages:
        summed.update(some)
    return summed


def without(pages: Pages, *less: Pages) -> Pages:
    return {kind: count - sum(some.get(kind, 0) for some in less) for kind, count in pages.items()}


def count(blocks: Blocks, *, besides: Blocks | None = None) -> Pages:
    return {kind: len(some - besides.get(kind, set()) if besides else some) for kind, some in blocks.items()}
