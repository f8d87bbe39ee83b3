from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen  # registers the operator that is looked for below
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from container.engine.worker import attention

DIM = 16
CPU = torch.device("cpu")

# A step is a list of sequences: (keys in the cache, new tokens).
STEPS = {
    "one decode": [(7, 1)],
    "a first token": [(0, 1)],
    "ragged decodes": [(3, 1), (90, 1), (17, 1), (16, 1), (31, 1), (0, 1), (5, 1)],
    "decodes of one length": [(12, 1), (12, 1), (12, 1)],
    "prefills": [(0, 5), (0, 33), (0, 2)],
    "chunks of prefills": [(32, 16), (7, 2), (64, 40)],
    "decodes between prefills": [(9, 1), (0, 21), (40, 1), (15, 30), (2, 1)],
}


@dataclass(frozen=True)
class FakeAllocator:
    index: int
    layer_type: str
    sliding_window: int | None = None


KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class FakeCache:
    """Stands in for the paged cache: holds one layer's old keys and values per sequence, hands over all of them in
    order, of which a sliding layer's cache has only the last W - 1."""

    def __init__(self, old: list[KeysAndValues], new_lengths: list[int], window: int | None) -> None:
        self.layer_to_allocator = {0: FakeAllocator(0, "full_attention" if window is None else "sliding", window)}
        self._old = [(k[-window + 1 :], v[-window + 1 :]) if window else (k, v) for k, v in old]
        self._new_lengths = new_lengths

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, kwargs: dict[str, Any]
    ) -> KeysAndValues:
        layer_type = self.layer_to_allocator[layer_idx].layer_type
        kwargs["cu_seq_lens_k"] = kwargs["cu_seq_lens_k"][layer_type]
        kwargs["max_length_k"] = kwargs["max_length_k"][layer_type]
        both = (key_states, value_states)
        packed = [self._join(which, new[0].transpose(0, 1)) for which, new in enumerate(both)]
        return packed[0], packed[1]

    def _join(self, which: int, new: torch.Tensor) -> torch.Tensor:
        pieces = zip((old[which] for old in self._old), new.split(self._new_lengths), strict=True)
        return torch.cat([x for pair in pieces for x in pair]).transpose(0, 1).unsqueeze(0)

    def arguments(self) -> dict[str, Any]:
        layer_type = self.layer_to_allocator[0].layer_type
        lengths = [len(k) + new for (k, _), new in zip(self._old, self._new_lengths, strict=True)]
        return {
            "cu_seq_lens_q": starts(self._new_lengths),
            "cu_seq_lens_k": {layer_type: starts(lengths)},
            "max_length_q": max(self._new_lengths),
            "max_length_k": {layer_type: max(lengths)},
            "read_index": [],
        }


class Layer(torch.nn.Module):
    layer_idx = 0


def starts(lengths: Iterable[int]) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def run(
    step: list[tuple[int, int]], *, heads: int = 4, key_heads: int = 2, window: int | None = None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `padded_attention` and a plain loop over sequences and queries give, both [T, heads, DIM]."""
    torch.manual_seed(0)
    new_lengths = [new for _, new in step]
    old = [(torch.randn(n, key_heads, DIM), torch.randn(n, key_heads, DIM)) for n, _ in step]
    query, key, value = (torch.randn(sum(new_lengths), n, DIM) for n in (heads, key_heads, key_heads))
    cache = FakeCache(old, new_lengths, window)
    inputs = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    out, _ = attention.padded_attention(Layer(), *inputs, None, cache=cache, **cache.arguments(), **options)
    pieces = zip(old, query.split(new_lengths), key.split(new_lengths), value.split(new_lengths), strict=True)
    expected = [
        plain(q, torch.cat([k0, k]), torch.cat([v0, v]), window=window, **options) for (k0, v0), q, k, v in pieces
    ]
    return out[0], torch.cat(expected)


def plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    scaling: float = DIM**-0.5,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attend one sequence: each query to the keys up to its own, at most `window` of them, a head at a time."""
    query, key, value = query.double(), key.double(), value.double()
    group = query.shape[1] // key.shape[1]
    out = torch.empty_like(query)
    for i, head in itertools.product(range(len(query)), range(query.shape[1])):
        end = len(key) - len(query) + i + 1
        seen = slice(0 if window is None else max(0, end - window), end)
        scores = key[seen, head // group] @ query[i, head] * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        out[i, head] = torch.softmax(scores, 0) @ value[seen, head // group]
    return out.float()


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("window", [None, 2, 16, 40])
def test_padded_attention_equals_plain_attention(step: list[tuple[int, int]], window: int | None) -> None:
    out, expected = run(step, window=window)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (4, 1)])
def test_query_heads_share_key_heads_of_group(heads: int, key_heads: int) -> None:
    out, expected = run(STEPS["decodes between prefills"], heads=heads, key_heads=key_heads)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("step", ["decodes between prefills", "prefills"])
def test_scores_are_capped_before_the_mask(step: str, window: int | None) -> None:
    out, expected = run(STEPS[step], window=window, softcap=0.5)
    torch.testing.assert_close(out, expected)


def test_the_models_own_scale_is_used() -> None:
    out, expected = run(STEPS["decodes between prefills"], scaling=0.7)
    torch.testing.assert_close(out, expected)


def test_reference_attention_distinguishes_window_cap_scale() -> None:
    step = STEPS["decodes between prefills"]
    results = [run(step, **options)[1] for options in ({}, {"window": 16}, {"softcap": 0.5}, {"scaling": 0.7})]
    assert all(not torch.allclose(a, b, atol=0.01) for a, b in itertools.combinations(results, 2))


def test_padding_at_most_doubles_a_row() -> None:
    lengths = [1, 2, 3, 5, 8, 13, 21, 34, 55, 90]
    plan = attention.plan_step(list(range(11)), starts(lengths).tolist(), None, torch.float32, CPU)
    for group in plan.groups:
        padded = len(group.key_index) // len(group.rows)
        assert all(padded < 2 * lengths[row] for row in group.rows)


def test_padded_row_reads_own_keys_only() -> None:
    plan = attention.plan_step([0, 1, 2], [0, 5, 11], None, torch.float32, CPU)
    (group,) = plan.groups
    assert group.rows.tolist() == [0, 1]
    assert group.key_index.view(2, 6).tolist() == [[0, 1, 2, 3, 4, 0], [5, 6, 7, 8, 9, 10]]
    assert group.mask is not None and group.mask[:, 0, 0, 5].tolist() == [float("-inf"), 0]


def test_a_plan_lives_for_one_step_only() -> None:
    torch.manual_seed(0)
    cache = FakeCache([(torch.randn(3, 2, DIM), torch.randn(3, 2, DIM))], [1], None)
    inputs = [torch.randn(1, heads, 1, DIM) for heads in (4, 2, 2)]
    attention.padded_attention(Layer(), *inputs, None, cache=cache, **cache.arguments())
    cache._old = [(k.repeat(4, 1, 1), v.repeat(4, 1, 1)) for k, v in cache._old]
    out, _ = attention.padded_attention(Layer(), *inputs, None, cache=cache, **cache.arguments())
    query, key, value = (x[0].transpose(0, 1) for x in inputs)
    expected = plain(query, torch.cat([cache._old[0][0], key]), torch.cat([cache._old[0][1], value]), None)
    torch.testing.assert_close(out[0], expected)


class Recorder(TorchDispatchMode):
    """Notes the arguments of FlashAttention's operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.torch_attn._varlen_attn.default:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("window", "expected"), [(None, [-1, 0]), (20, [19, 0])])
def test_flash_attention_gets_expected_arguments(window: int | None, expected: list[int]) -> None:
    with FakeTensorMode(), Recorder() as recorder:
        old = [torch.empty(n, 2, 64, dtype=torch.bfloat16) for n in (9, 30)]
        cache = FakeCache([(k, k) for k in old], [1, 4], window)
        inputs = [torch.empty(1, heads, 5, 64, dtype=torch.bfloat16) for heads in (8, 2, 2)]
        out, _ = attention.flash_attention(Layer(), *inputs, None, cache=cache, scaling=0.3, **cache.arguments())
    ((query, key, value, queries, keys, max_q, max_k, is_causal, scale, window_size, gqa),) = recorder.calls
    kept = [9, 30] if window is None else [9, 19]
    assert (out.shape, out.dtype) == ((1, 5, 8, 64), torch.bfloat16)
    assert (query.shape, key.shape, value.shape) == ((5, 8, 64), (sum(kept) + 5, 2, 64), (sum(kept) + 5, 2, 64))
    assert (queries.dtype, keys.dtype, max_q, max_k) == (torch.int32, torch.int32, 4, kept[1] + 4)
    assert (is_causal, scale, window_size, gqa) == (window is None, 0.3, expected, True)


@pytest.mark.parametrize("function", [attention.padded_attention, attention.flash_attention])
def test_attention_sinks_are_refused(function: Any) -> None:
    with pytest.raises(NotImplementedError, match="sinks"):
        function(Layer(), *(torch.empty(1, 2, 1, DIM),) * 3, None, cache=None, s_aux=torch.zeros(2))


def test_flash_attention_serves_no_cpu() -> None:
    assert attention.flash_rejection_reason(CPU, torch.bfloat16, 64, None) == "device is cpu"


class FakeGpu:
    """Stands in for `torch.cuda` where there is none."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._capability = capability

    def get_device_capability(self, device: torch.device) -> tuple[int, int]:
        return self._capability

    def get_device_name(self, device: torch.device) -> str:
        return "Tesla T4"


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "softcap", "reason"),
    [
        ((7, 5), torch.float16, 64, None, "Tesla T4 is older than Ampere"),
        ((8, 0), torch.float32, 64, None, "dtype is torch.float32"),
        ((8, 0), torch.bfloat16, 320, None, "head dimension is 320"),
        ((8, 0), torch.bfloat16, 60, None, "head dimension is 60"),
        ((9, 0), torch.bfloat16, 64, 50.0, "the model caps its attention scores"),
        ((8, 0), torch.bfloat16, 256, None, None),
    ],
)
def test_reason_against_flash_attention_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_dim: int,
    softcap: float | None,
    reason: str | None,
) -> None:
    monkeypatch.setattr(torch, "cuda", FakeGpu(capability))
    assert attention.flash_rejection_reason(torch.device("cuda", 0), dtype, head_dim, softcap) == reason
