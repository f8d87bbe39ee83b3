"""Variable-length attention over the paged KV cache, registered with `transformers` under `NAME`.

All sequences of a step arrive packed in one row: queries [1, Hq, T, D], new keys and values [1, Hkv, T, D]. Each
sequence attends to its own keys only, causally, aligned to the bottom right (its last query sees its last key).
The step's calls are told apart by their number; what a call is, the probe at load has found (`probe.py`), and each one
is held against that. On CUDA a call is PyTorch's own FlashAttention. Elsewhere, and where that kernel can't serve, it
is `scaled_dot_product_attention`: one padded call for the decoding rows of a length class, one call per prefilling
sequence.

Hq, Hkv: query and key/value heads; G = Hq / Hkv; D: head dimension; T: query tokens of the step; N: sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NoReturn

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from container.engine.worker.attention_plan import DecodeGroup, Prefill, StepPlan, plan_picked, plan_step
from container.engine.worker.flash_attention import flash_attention
from container.engine.worker.forward_step import ForwardStep, current
from container.engine.worker.paged_cache import Place

# Neither "sdpa" nor "eager" (for which the library builds masks over the whole batch) nor with "flash" in it
# (for which it imports kernels).
NAME = "longhaul_varlen"
_ALIGNED = 8  # elements by which kernels want a head to grow

Record = Callable[..., tuple[torch.Tensor, None]]
recording: ContextVar[Record | None] = ContextVar("recording", default=None)
"""Taker of the attention calls of a forward pass outside the batch, with the arguments of `attend`."""


class UnexpectedCall(Exception):
    """The model asks for another attention than it did when it was loaded."""


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    indices: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend one call of a step. Returns ([1, T, Hq, D], None). Raises UnexpectedCall if the probe hasn't seen it.

    `s_aux` [Hq] are sinks. `indices` say that an indexer has picked the keys, which are in the step.
    """
    step = current.get()
    if step is None:
        more = {"scaling": scaling, "softcap": softcap, "s_aux": s_aux, "indices": indices} | kwargs
        return _record(module, query, key, value, attention_mask, more)
    number, places = step.calls_made, step.cache.places
    step.calls_made = number + 1
    shape = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
    if number >= len(places) or places[number].shape != shape:
        _raise_unexpected(step, shape)
    place = places[number]
    call = place.call
    if softcap != call.softcap or (s_aux is None) is call.has_sinks or (indices is None) is call.is_indexed:
        _raise_unexpected(step, shape)
    sinks = None if s_aux is None else s_aux.reshape(-1)
    queries, new_keys = query[0].transpose(0, 1), key[0].transpose(0, 1)  # [T, H, D]
    keys, values = _update(step, number, place, new_keys, value[0].transpose(0, 1))
    if place.is_flash:
        return flash_attention(call, queries, keys, values, step.arguments, scaling, sinks).unsqueeze(0), None
    plan = _plan(step, place, queries)
    out = padded_attention(plan, queries, keys, values, scaling, softcap, sinks)
    keep_faults(out, queries, new_keys, plan)
    return out.unsqueeze(0), None


def _record(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    more: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    record = recording.get()
    if record is None:
        raise UnexpectedCall("attention outside a step of the batch: choose one of the library's implementations first")
    return record(module, query, key, value, attention_mask, **more)


def _raise_unexpected(step: ForwardStep, shape: tuple[int, ...]) -> NoReturn:
    number, places = step.calls_made - 1, step.cache.places
    expected = places[number].call if number < len(places) else f"at most {len(places)} calls"
    raise UnexpectedCall(f"attention call {number} of the step has heads and sizes {shape}; at load it was {expected}")


def _update(
    step: ForwardStep, number: int, place: Place, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write new keys and values [T, Hkv, D] to the cache. Return those of the step's sequences [K, Hkv, D]."""
    allocator = place.allocator
    read, write = step.read_index[allocator.index], step.write_index[allocator.index]
    if place.row is None:
        return allocator.update(key, value, number, read, write)
    rows = [pad(x.flatten(1), (0, place.row - x.shape[1] * x.shape[2])).unsqueeze(1) for x in (key, value)]
    keys, values = allocator.update(rows[0], rows[1], number, read, write)
    # [K, Hkv, D] as views of the rows.
    heads = key.shape[1]
    return (
        keys[:, 0, : heads * key.shape[2]].view(len(keys), heads, -1),
        values[:, 0, : heads * value.shape[2]].view(len(values), heads, -1),
    )


def _plan(step: ForwardStep, place: Place, queries: torch.Tensor) -> StepPlan:
    call = place.call
    key_starts = step.key_starts[call.kind]
    if call.is_indexed:
        assert step.picked is not None, "the call's indexer has run before it"
        return plan_picked(step.query_starts, key_starts, step.picked, queries.dtype)
    key = (call.kind, call.chunk)
    if key not in step.plans:
        step.plans[key] = plan_step(
            step.query_starts, key_starts, call.window, queries.dtype, queries.device, chunk=call.chunk
        )
    plan: StepPlan = step.plans[key]
    return plan


def padded_attention(
    plan: StepPlan,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend queries [T, Hq, D] to keys and values [K, Hkv, D], on any device, with any dtype and head size.

    Returns [T, Hq, D], where D is the values'.
    """
    scale = queries.shape[-1] ** -0.5 if scaling is None else scaling
    out = queries.new_empty((*queries.shape[:2], values.shape[-1]))
    for group in plan.groups:
        out[group.rows] = _decode(group, queries, keys, values, scale, softcap, sinks)
    for prefill in plan.prefills:
        out[prefill.q0 : prefill.q1] = _prefill(prefill, queries, keys, values, scale, softcap, sinks)
    return out


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
    elif plan.has_few_keys and out.shape == queries.shape:
        out.add_(queries, alpha=0.0)
    elif plan.has_few_keys:  # values have another size
        out[..., 0].add_(queries.float().sum(-1), alpha=0.0)


def _decode(
    group: DecodeGroup,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend the group's rows. Returns [B, Hq, D].

    The G query heads of a key head become rows of one matrix, so that no key is repeated.
    """
    batch, key_heads = group.rows.shape[0], keys.shape[1]
    query = queries[group.rows].view(batch, key_heads, -1, queries.shape[-1])
    key, value = (
        x.index_select(0, group.key_index).view(batch, -1, *x.shape[1:]).transpose(1, 2) for x in (keys, values)
    )
    own_sinks = None if sinks is None else sinks.view(1, key_heads, -1)
    return _attend(query, key, value, group.mask, scale, softcap, own_sinks).reshape(batch, -1, values.shape[-1])


def _prefill(
    prefill: Prefill,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend one sequence's new tokens. Returns [q1 - q0, Hq, D]."""
    query = queries[prefill.q0 : prefill.q1].transpose(0, 1).unsqueeze(0)
    key, value = (
        x[prefill.k0 : prefill.k1].transpose(0, 1).repeat_interleave(query.shape[1] // x.shape[1], dim=0).unsqueeze(0)
        for x in (keys, values)
    )
    mask, is_causal = prefill.mask, prefill.mask is None
    own_sinks = None if sinks is None else sinks.view(1, -1, 1)
    if softcap is None and own_sinks is not None:
        query, key, value, mask = _with_sink_keys(query, key, value, mask, scale, own_sinks)
        own_sinks, is_causal = None, False
    return _attend(query, key, value, mask, scale, softcap, own_sinks, is_causal=is_causal)[0].transpose(0, 1)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Attend [B, H, Q, D] to [B, H, L, D]. `sinks` [1, H, Q], or with 1 for Q, are further scores, without values."""
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale)
    if softcap is None:
        assert sinks is not None and not is_causal, "decoding rows have a mask or none"
        return _attend_with_sinks(query, key, value, mask, scale, sinks)
    # Gemma 2's capped scores (https://arxiv.org/abs/2408.00118, section 2) fit no fused kernel of PyTorch's.
    scores = torch.tanh(query @ key.transpose(-1, -2) * (scale / softcap)) * softcap
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.unsqueeze(-1).expand(*scores.shape[:3], 1).to(scores.dtype)], dim=-1)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return shares[..., : key.shape[2]] @ value


def _attend_with_sinks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    sinks: torch.Tensor,
) -> torch.Tensor:
    """Attend with one more key per sequence, whose score the mask brings and whose value is zero."""
    keys = key.shape[2]
    wider = query.new_zeros((*query.shape[:3], keys + 1))
    if mask is not None:
        wider[..., :keys] = mask
    wider[..., keys] = sinks
    key, value = (pad(x, (0, 0, 0, 1)) for x in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=wider, scale=scale)


def _with_sink_keys(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    sinks: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys [1, H, K + 1, D + 8], values and mask [Q, K + 1] with the sinks [1, H, 1] as one more key.

    One more element, 1 in all queries and 0 in all other keys, brings the sink's score: so all heads share a mask.
    """
    queries, keys, size = query.shape[2], key.shape[2], query.shape[3]
    if mask is None:
        mask = query.new_full((queries, keys), float("-inf")).triu_(1)
    query, key = pad(query, (0, _ALIGNED)), pad(key, (0, _ALIGNED, 0, 1))
    query[..., size] = 1.0
    key[:, :, keys, size] = sinks[..., 0] / scale
    return query, key, pad(value, (0, 0, 0, 1)), pad(mask, (0, 1))


def register() -> None:
    """Make `attn_implementation=NAME` mean this attention, for models loaded from now on."""
    AttentionInterface.register(NAME, attend)


def register_masks() -> None:
    """Have the library give its models a mask, without content: those that pick keys themselves cut it to pieces."""
    AttentionMaskInterface.register(NAME, _empty_mask)


def _empty_mask(
    batch_size: int, q_length: int, kv_length: int, *, device: torch.device | str = "cpu", **kwargs: Any
) -> torch.Tensor:
    """Return zeros [B, 1, Q, K], all of which are one."""
    return torch.zeros(1, device=device).expand(batch_size, 1, q_length, kv_length)
