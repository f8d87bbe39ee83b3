"""The library's paged cache with a place for each attention call, of the sizes that the calls have.

The library's own has a place for each layer, and takes all sizes from the model's configuration. There, they differ
between layers, are those of something else, or are missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, lcm
from types import SimpleNamespace
from typing import Any, cast

import torch
from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import ATTN_TYPE_TO_ALLOCATOR, PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import CachePool, FullAttentionCacheAllocator

from container.engine.worker.flash_attention import flash_rejection_reason
from container.engine.worker.layout import AttentionCall, CallGroup, Layout

_ALIGNMENT = 128  # bytes, as the library's


@dataclass(frozen=True, slots=True)
class Place:
    """Place in the cache of the keys and values of one of a step's attention calls."""

    call: AttentionCall
    shape: tuple[int, int, int, int]
    allocator: FullAttentionCacheAllocator
    row: int | None
    """Elements of a row, where the keys or values have others than its shape; None: they fit as they are."""
    is_flash: bool
    """Whether FlashAttention serves the call."""


class PagedCache(PagedAttentionCache):
    """The library's cache, laid out for a model's attention calls. It has as many blocks as its configuration says."""

    def __init__(
        self, layout: Layout, config: ContinuousBatchingConfig, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Build what the library's `__init__`, which is not called, builds for a model's layers."""
        self.dtype, self.device = dtype, device
        self.max_blocks_per_request = 0  # no block tables: they are for the library's own kernels
        self.allow_block_sharing = config.allow_block_sharing and layout.shares_prefixes
        kinds = {
            group.kind: _allocator(index, group, config.page_size, dtype, shares=self.allow_block_sharing)
            for index, group in enumerate(layout.groups)
        }
        self.cache_allocators, allocators = dict(kinds), kinds.values()
        self.layer_to_allocator = {number: own for own in allocators for number in own.layer_indices}
        self.places = tuple(
            _place(call, group, kinds[call.kind], device, dtype)
            for call in layout.calls
            for group in layout.groups
            if group.kind == call.kind
        )
        self.bytes_per_sector = lcm(*(own.bytes_per_block for own in allocators), _ALIGNMENT)
        self.tokens_per_sector = max(
            self.bytes_per_sector // own.bytes_per_block * own.tokens_per_page for own in allocators
        )
        bytes_per_block = sum(own.bytes_per_block for own in allocators)
        assert config.num_blocks is not None and config.max_batch_tokens is not None, "Batch sets both"
        self.max_batch_tokens = config.max_batch_tokens
        self.num_sectors = max(1, ceil(config.num_blocks * bytes_per_block / self.bytes_per_sector))
        self._allocate()
        self.num_blocks = self.num_sectors * self.bytes_per_sector // bytes_per_block
        self.use_prefix_sharing = self.allow_block_sharing and all(own.use_block_sharing for own in allocators)
        self.read_cache_limit = self._infer_read_cache_limit()
        self.max_decode_fast_path_length = self._infer_max_decode_fast_path_length()
        self.max_tokens_read = max(own.tokens_per_page * own.num_blocks for own in allocators)

    def _allocate(self) -> None:
        # The allocators expect two sectors that nobody's tokens are in.
        data_bytes = self.num_sectors * self.bytes_per_sector
        self.cache_tensor = torch.zeros(data_bytes + 2 * self.bytes_per_sector, dtype=torch.uint8, device=self.device)
        self.pool = CachePool(self.num_sectors, len(self.cache_allocators))
        for allocator in self.cache_allocators.values():
            allocator.register_cache_tensor(self.bytes_per_sector, data_bytes, self.cache_tensor, self.pool)


def _allocator(
    index: int, group: CallGroup, page_tokens: int, dtype: torch.dtype, *, shares: bool
) -> FullAttentionCacheAllocator:
    """Build one of the library's allocators, the sliding one of which is a full one too."""
    allocator: FullAttentionCacheAllocator = ATTN_TYPE_TO_ALLOCATOR[group.kind](
        index=index,
        # All that it reads of a model's configuration.
        config=cast(Any, SimpleNamespace(head_dim=group.size, sliding_window=group.window)),
        num_key_value_heads=group.heads,
        cache_dtype=dtype,
        page_size=page_tokens,
        layer_indices=list(group.numbers),
        allow_block_sharing=shares,
    )
    return allocator


def _place(
    call: AttentionCall,
    group: CallGroup,
    allocator: FullAttentionCacheAllocator,
    device: torch.device,
    dtype: torch.dtype,
) -> Place:
    fits = (call.key_heads, call.key_size, call.value_size) == (group.heads, group.size, group.size)
    return Place(
        call=call,
        shape=call.shape,
        allocator=allocator,
        row=None if fits else group.heads * group.size,
        is_flash=flash_rejection_reason(call, device, dtype) is None,
    )
