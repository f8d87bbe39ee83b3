"""Plans of a step's padded attention: which rows are attended together, and which keys each query sees.

A plan is the same for all of a step's attention calls with one allocator, window and size of chunks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch

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
    """The part of a step's attention that is the same for all calls that share it."""

    groups: tuple[DecodeGroup, ...]
    prefills: tuple[Prefill, ...]
    has_few_keys: bool
    """Whether any of the sequences has so few keys that PyTorch may overlook scores that are not numbers."""


def plan_step(
    query_starts: list[int],
    key_starts: list[int],
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    chunk: int | None = None,
) -> StepPlan:
    """Sort a step's sequences into padded groups and single prefills.

    `query_starts` and `key_starts` [N + 1] are the cumulative lengths. With a `window` W a query sees its last W keys:
    the cache hands over at most W - 1 old keys for sliding layers, so a decoding row never needs the window. With a
    `chunk` C it sees the keys of its own C positions alone: all keys are there, and a key's place is its position.
    """
    decodes: list[tuple[int, int, int]] = []
    prefills: list[Prefill] = []
    has_few_keys = any(k1 - k0 < _FEW_KEYS for k0, k1 in pairwise(key_starts))
    for q0, q1, k0, k1 in zip(query_starts, query_starts[1:], key_starts, key_starts[1:], strict=False):
        if q1 - q0 == 1:
            seen = k1 - k0 if chunk is None else (k1 - k0 - 1) % chunk + 1
            has_few_keys |= seen < _FEW_KEYS
            decodes.append((seen, q0, k1 - seen))
        elif q1 > q0:
            if chunk is not None:  # what is before the first query's chunk is not seen
                k0 += (k1 - k0 - (q1 - q0)) // chunk * chunk
            prefills.append(Prefill(q0, q1, k0, k1, _prefill_mask(q1 - q0, k1 - k0, window, chunk, dtype, device)))
    decodes.sort()
    # Length classes by powers of two bound the padding: no row is padded to more than twice its length.
    classes = groupby(decodes, key=lambda row: row[0].bit_length())
    groups = tuple(_decode_group(list(rows), dtype, device) for _, rows in classes)
    return StepPlan(groups, tuple(prefills), has_few_keys)


def plan_picked(
    query_starts: list[int], key_starts: list[int], picked: Iterable[torch.Tensor], dtype: torch.dtype
) -> StepPlan:
    """Plan a step whose queries see the keys that an indexer has picked, of those up to their own.

    `picked` has the positions of each sequence's keys, [queries, picks].
    """
    prefills = []
    for (q0, q1), (k0, k1), picks in zip(pairwise(query_starts), pairwise(key_starts), picked, strict=True):
        queries, keys = q1 - q0, k1 - k0
        seen = torch.zeros((queries, keys), dtype=torch.bool, device=picks.device)
        seen.scatter_(1, picks.long(), True)
        prefills.append(Prefill(q0, q1, k0, k1, _additive_mask(seen.tril_(keys - queries), dtype)))
    return StepPlan((), tuple(prefills), has_few_keys=True)


def _decode_group(rows: list[tuple[int, int, int]], dtype: torch.dtype, device: torch.device) -> DecodeGroup:
    """Build a group of `rows`: numbers of keys, ascending; indices of the queries; indices of the first keys."""
    lengths, queries, starts = (torch.tensor(column, device=device) for column in zip(*rows, strict=True))
    longest = rows[-1][0]
    column = torch.arange(longest, device=device)
    inside = column < lengths[:, None]
    key_index = torch.where(inside, starts[:, None] + column, starts[:, None]).flatten()
    mask = None
    if rows[0][0] != longest:
        mask = _additive_mask(inside, dtype)[:, None, None]
    return DecodeGroup(queries, key_index, mask)


def _additive_mask(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def _prefill_mask(
    queries: int, keys: int, window: int | None, chunk: int | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    if queries == keys and keys <= min(window or keys, chunk or keys):
        return None
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)[None]
    seen = key <= query
    if window is not None:
        seen &= key > query - window
    if chunk is not None:
        seen &= key // chunk == query // chunk
    return _additive_mask(seen, dtype)
