"""FlashAttention for the calls that it can serve: CUDA from compute capability 8.0, half precision.

It is PyTorch's own (`torch.nn.attention.varlen`), for packed sequences of different lengths.

T: query tokens of the step; K: its keys; Hq, Hkv: query and key/value heads; D: size of a key, or of a value.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.nn.functional import pad

from container.engine.worker.layout import AttentionCall, Layout

FLASH = "flash"
_MAX_HEAD_DIM = 256


def flash_attention(
    call: AttentionCall,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    arguments: dict[str, Any],
    scaling: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend queries [T, Hq, D] to keys and values [K, Hkv, D]. Returns [T, Hq, D].

    `arguments` are the library's for the step: cumulative and longest lengths.
    """
    from torch.nn.attention.varlen import AuxRequest, varlen_attn  # it looks for a GPU

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    size = max(call.key_size, call.value_size)
    if call.key_size != call.value_size:  # the kernel takes one size; zeros add nothing to scores or values
        query, keys, values = (pad(x, (0, size - x.shape[-1])) for x in (query, keys, values))
    out = varlen_attn(
        query,
        keys,
        values,
        cu_seq_q=arguments["cu_seq_lens_q"],
        cu_seq_k=arguments["cu_seq_lens_k"][call.kind],
        max_q=arguments["max_length_q"],
        max_k=arguments["max_length_k"][call.kind],
        scale=scale,
        window_size=(-1, 0) if call.window is None else (call.window - 1, 0),
        enable_gqa=True,
        return_aux=None if sinks is None else AuxRequest(lse=True),
    )
    if isinstance(out, torch.Tensor):
        return out[..., : call.value_size]
    assert sinks is not None, "the logarithms were asked for"
    return give_sinks_their_share(*out, sinks)[..., : call.value_size]


def give_sinks_their_share(out: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Scale what came without sinks [T, Hq, D] as if each head's sink [Hq] had taken its share of the softmax.

    `lse` [Hq, T] is the logarithm of the sum of the exponentials of a query's scores.
    """
    share = torch.sigmoid(lse.transpose(0, 1) - sinks.float())
    return out * share.unsqueeze(-1).to(out.dtype)


def flash_rejection_reason(call: AttentionCall, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why FlashAttention can't serve the call; None if it can."""
    if device.type != "cuda":
        return f"device is {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"dtype is {dtype}"
    size = max(call.key_size, call.value_size)
    if size > _MAX_HEAD_DIM or size % 8:
        return f"head dimension is {size}"
    if call.softcap is not None:
        return "the model caps its attention scores"
    if call.chunk is not None:
        return "the model attends in chunks"
    if call.is_indexed:
        return "an indexer picks the keys"
    return None


def describe_attention(layout: Layout, device: torch.device, dtype: torch.dtype) -> str:
    """Say which function serves the model's attention calls, and why not the fast one."""
    reasons = [flash_rejection_reason(call, device, dtype) for call in layout.calls]
    padded = Counter(reason for reason in reasons if reason is not None)
    if not padded:
        return FLASH
    why = ", ".join(padded)
    if padded.total() == len(reasons):
        return f"padded ({why})"
    return f"{FLASH}; padded for {padded.total()} of {len(reasons)} calls ({why})"
