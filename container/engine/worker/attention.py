"""Variable-length attention over the paged KV cache, registered with `transformers` under `NAME`.

All sequences of a step arrive packed in one row: queries [1, Hq, T, D], new keys and values [1, Hkv, T, D]. Each
sequence attends to its own keys only, causally, aligned to the bottom right (its last query sees its last key).
On CUDA this is one call of PyTorch's own FlashAttention (`torch.nn.attention.varlen`). Elsewhere, and where that
kernel can't serve, it is `scaled_dot_product_attention`: one padded call for the decoding rows of a length class,
one call per prefilling sequence.

Hq, Hkv: query and key/value heads; G = Hq / Hkv; D: head dimension; T: query tokens of the step; N: sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache

# Neither "sdpa" nor "eager" (for which the library builds masks over the whole batch) nor with "flash" in it
# (for which it imports kernels).
NAME = "longhaul_varlen"
_FEW_KEYS = 32
"""Number of keys from which on PyTorch's kernel sees scores that are NaN: they fill a vector register."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences of similar length with one query token each, attended in one padded call."""

    rows: torch.Tensor  # [B] indices of their query tokens in the step
    key_index: torch.Tensor  # [B * L] indices in the step's key list, padded with the sequence's first
    mask: torch.Tensor | None  # [B, 1, 1, L] additive; None if all have length L


@dataclass(frozen=True, slots=True)
class Prefill:
    """One sequence with several query tokens: queries [q0, q1) attend to keys [k0, k1) of the step's key list."""

    q0: int
    q1: int
    k0: int
    k1: int
    mask: torch.Tensor | None  # [q1 - q0, k1 - k0] additive; None where plain causal does


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The part of a step's attention that is the same for all layers that share an allocator."""

    groups: tuple[DecodeGroup, ...]
    prefills: tuple[Prefill, ...]
    has_few_keys: bool
    """Whether any of the sequences has so few keys that PyTorch may overlook scores that are not numbers."""


def plan_step(
    query_starts: list[int], key_starts: list[int], window: int | None, dtype: torch.dtype, device: torch.device
) -> StepPlan:
    """Sort a step's sequences into padded groups and single prefills.

    `query_starts` and `key_starts` [N + 1] are the cumulative lengths; with a `window` W a query sees its last W keys.
    The cache hands over at most W - 1 old keys for sliding layers, so a decoding row never needs the window.
    """
    decodes: list[tuple[int, int, int]] = []
    prefills: list[Prefill] = []
    for q0, q1, k0, k1 in zip(query_starts, query_starts[1:], key_starts, key_starts[1:], strict=False):
        if q1 - q0 == 1:
            decodes.append((k1 - k0, q0, k0))
        elif q1 > q0:
            prefills.append(Prefill(q0, q1, k0, k1, _prefill_mask(q1 - q0, k1 - k0, window, dtype, device)))
    decodes.sort()
    # Length classes by powers of two bound the padding: no row is padded to more than twice its length.
    classes = groupby(decodes, key=lambda row: row[0].bit_length())
    groups = []
    for rows in (list(rows) for _, rows in classes):
        lengths, queries, starts = (torch.tensor(column, device=device) for column in zip(*rows, strict=True))
        longest = rows[-1][0]
        column = torch.arange(longest, device=device)
        inside = column < lengths[:, None]
        key_index = torch.where(inside, starts[:, None] + column, starts[:, None]).flatten()
        mask = None
        if rows[0][0] != longest:
            mask = _additive_mask(inside, dtype)[:, None, None]
        groups.append(DecodeGroup(queries, key_index, mask))
    has_few_keys = any(k1 - k0 < _FEW_KEYS for k0, k1 in pairwise(key_starts))
    return StepPlan(tuple(groups), tuple(prefills), has_few_keys)


def _additive_mask(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def _prefill_mask(
    queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    if queries == keys and (window is None or keys <= window):
        return None
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)[None]
    seen = key <= query
    if window is not None:
        seen &= key > query - window
    return _additive_mask(seen, dtype)


class _Plans:
    """Owns the plans of the present step, by the index of the layers' allocator."""

    def __init__(self) -> None:
        self._read_index: list[torch.Tensor] | None = None
        self._plans: dict[int, StepPlan] = {}

    def get(self, cache: PagedAttentionCache, layer_idx: int, query: torch.Tensor, kwargs: dict[str, Any]) -> StepPlan:
        # No argument names the step. But the library makes this list anew for each step and hands it to every layer,
        # and no other list can have its identity while it is kept here.
        if kwargs["read_index"] is not self._read_index:
            self._read_index, self._plans = kwargs["read_index"], {}
        allocator = cache.layer_to_allocator[layer_idx]
        if allocator.index not in self._plans:
            self._plans[allocator.index] = plan_step(
                kwargs["cu_seq_lens_q"].tolist(),
                kwargs["cu_seq_lens_k"][allocator.layer_type].tolist(),
                getattr(allocator, "sliding_window", None),
                query.dtype,
                query.device,
            )
        return self._plans[allocator.index]


_plans = _Plans()


def padded_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cache: PagedAttentionCache,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend on any device, with any dtype and head size. Returns ([1, T, Hq, D], None)."""
    _validate_sinks(kwargs)
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    plan = _plans.get(cache, layer_idx, query, kwargs)
    keys, values = cache.update(key_states=key, value_states=value, layer_idx=layer_idx, kwargs=kwargs)
    # [1, Hkv, K, D] is a view of [K, Hkv, D]: gather rows there.
    keys, values = keys[0].transpose(0, 1), values[0].transpose(0, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries = query[0].transpose(0, 1)  # [T, Hq, D]
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    for group in plan.groups:
        out[group.rows] = _decode(group, queries, keys, values, scale, softcap)
    for prefill in plan.prefills:
        out[prefill.q0 : prefill.q1] = _prefill(prefill, queries, keys, values, scale, softcap)
    keep_faults(out, queries, key[0].transpose(0, 1), plan)
    return out.unsqueeze(0), None


def keep_faults(out: torch.Tensor, queries: torch.Tensor, new_keys: torch.Tensor, plan: StepPlan) -> None:
    """Make part of the output [T, Hq, D] NaN, in place, where queries [T, Hq, D] and new keys [T, Hkv, D] overflow.

    PyTorch's kernel for CPUs gives zeros where it finds no largest score: all are -inf, or they are NaN and few. A zero
    times what is not finite is NaN, and changes nothing else. What a prompt's own tokens have shown to be finite is
    not looked at again as the sequence grows, except for queries that the kernel may overlook.
    """
    if plan.prefills:
        tokens, key_heads, dim = new_keys.shape
        own_scores = (queries.float().view(tokens, key_heads, -1, dim) * new_keys.unsqueeze(2)).sum(-1)
        out[..., 0].add_(own_scores.flatten(1), alpha=0.0)
    elif plan.has_few_keys:
        out.add_(queries, alpha=0.0)


def _decode(
    group: DecodeGroup,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attend the group's rows. Returns [B, Hq, D].

    The G query heads of a key head become rows of one matrix, so that no key is repeated.
    """
    batch, key_heads, dim = group.rows.shape[0], keys.shape[1], keys.shape[2]
    query = queries[group.rows].view(batch, key_heads, -1, dim)
    key = keys.index_select(0, group.key_index).view(batch, -1, key_heads, dim).transpose(1, 2)
    value = values.index_select(0, group.key_index).view(batch, -1, key_heads, dim).transpose(1, 2)
    return _attend(query, key, value, group.mask, scale, softcap).reshape(batch, -1, dim)


def _prefill(
    prefill: Prefill,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attend one sequence's new tokens. Returns [q1 - q0, Hq, D]."""
    query = queries[prefill.q0 : prefill.q1].transpose(0, 1).unsqueeze(0)
    key, value = (
        x[prefill.k0 : prefill.k1].transpose(0, 1).repeat_interleave(query.shape[1] // x.shape[1], dim=0).unsqueeze(0)
        for x in (keys, values)
    )
    return _attend(query, key, value, prefill.mask, scale, softcap, is_causal=prefill.mask is None)[0].transpose(0, 1)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    is_causal: bool = False,
) -> torch.Tensor:
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale)
    # Gemma 2's capped scores (https://arxiv.org/abs/2408.00118, section 2) fit no fused kernel of PyTorch's.
    scores = torch.tanh(query @ key.transpose(-1, -2) * (scale / softcap)) * softcap
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value


def flash_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cache: PagedAttentionCache,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with PyTorch's FlashAttention: CUDA from compute capability 8.0, half precision.

    Returns ([1, T, Hq, D], None).
    """
    from torch.nn.attention.varlen import varlen_attn

    _validate_sinks(kwargs)
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    window = getattr(cache.layer_to_allocator[layer_idx], "sliding_window", None)
    # `update` also replaces the per-layer-type lengths in kwargs by this layer's own.
    keys, values = cache.update(key_states=key, value_states=value, layer_idx=layer_idx, kwargs=kwargs)
    out = varlen_attn(
        query[0].transpose(0, 1),
        keys[0].transpose(0, 1),
        values[0].transpose(0, 1),
        cu_seq_q=kwargs["cu_seq_lens_q"],
        cu_seq_k=kwargs["cu_seq_lens_k"],
        max_q=kwargs["max_length_q"],
        max_k=kwargs["max_length_k"],
        scale=scaling,
        window_size=(-1, 0) if window is None else (window - 1, 0),
        enable_gqa=True,
    )
    assert isinstance(out, torch.Tensor)
    return out.unsqueeze(0), None


def _validate_sinks(kwargs: dict[str, Any]) -> None:
    # The list of supported models keeps out those with sinks; ignoring them would be silently wrong.
    if kwargs.get("s_aux") is not None:
        raise NotImplementedError("attention sinks are not implemented")


def flash_rejection_reason(
    device: torch.device, dtype: torch.dtype, head_dim: int, softcap: float | None
) -> str | None:
    """Return why `flash_attention` can't serve; None if it can."""
    if device.type != "cuda":
        return f"device is {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"dtype is {dtype}"
    if head_dim > 256 or head_dim % 8:
        return f"head dimension is {head_dim}"
    if softcap is not None:
        return "the model caps its attention scores"
    return None


def register(*, flash: bool) -> None:
    """Make `attn_implementation=NAME` mean one of the two functions for models loaded from now on."""
    AttentionInterface.register(NAME, flash_attention if flash else padded_attention)
