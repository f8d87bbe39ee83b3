from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen  # registers the operator that is looked for below
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from container.engine.worker import attention
from container.engine.worker.attention_plan import plan_picked, plan_step
from container.engine.worker.flash_attention import (
    describe_attention,
    flash_attention,
    flash_rejection_reason,
    give_sinks_their_share,
)
from container.engine.worker.layout import FULL, SLIDING, AttentionCall, Layout

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


def starts(lengths: Iterable[int]) -> list[int]:
    return [0, *itertools.accumulate(lengths)]


def run(
    step: list[tuple[int, int]],
    *,
    heads: int = 4,
    key_heads: int = 2,
    value_dim: int = DIM,
    window: int | None = None,
    chunk: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `padded_attention` and a plain loop over sequences and queries give, both [T, heads, value_dim]."""
    torch.manual_seed(0)
    new_lengths = [new for _, new in step]
    query, new_keys, new_values = (
        torch.randn(sum(new_lengths), n, size) for n, size in ((heads, DIM), (key_heads, DIM), (key_heads, value_dim))
    )
    old = [(torch.randn(n, key_heads, DIM), torch.randn(n, key_heads, value_dim)) for n, _ in step]
    new = list(zip(new_keys.split(new_lengths), new_values.split(new_lengths), strict=True))
    whole = [tuple(torch.cat(pair) for pair in zip(*both, strict=True)) for both in zip(old, new, strict=True)]
    # A sliding layer's cache hands over the last W - 1 old keys alone.
    kept = [n if window is None else min(n, window - 1) for n, _ in step]
    lengths = [k + n for k, n in zip(kept, new_lengths, strict=True)]
    keys, values = (torch.cat([x[i][-n:] for x, n in zip(whole, lengths, strict=True)]) for i in (0, 1))
    plan = plan_step(starts(new_lengths), starts(lengths), window, torch.float32, CPU, chunk=chunk)
    out = attention.padded_attention(plan, query, keys, values, **options)
    pieces = zip(query.split(new_lengths), whole, strict=True)
    expected = [plain(q, k, v, window=window, chunk=chunk, **options) for q, (k, v) in pieces]
    return out, torch.cat(expected)


def plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    window: int | None,
    chunk: int | None,
    scaling: float = DIM**-0.5,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend one sequence: each query to the keys up to its own that it sees, a head at a time."""
    query, key, value = query.double(), key.double(), value.double()
    group = query.shape[1] // key.shape[1]
    out = query.new_empty(*query.shape[:2], value.shape[2])
    for i, head in itertools.product(range(len(query)), range(query.shape[1])):
        end = len(key) - len(query) + i + 1
        first = max(0 if window is None else end - window, 0 if chunk is None else (end - 1) // chunk * chunk, 0)
        scores = key[first:end, head // group] @ query[i, head] * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if sinks is not None:
            scores = torch.cat([scores, sinks[head : head + 1].double()])
        out[i, head] = torch.softmax(scores, 0)[: end - first] @ value[first:end, head // group]
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


SINKS = torch.tensor([0.5, -1.0, 3.0, 0.0])


@pytest.mark.parametrize("options", [{}, {"window": 16}, {"softcap": 0.5}, {"value_dim": 24}], ids=str)
@pytest.mark.parametrize("step", ["decodes between prefills", "prefills", "ragged decodes"])
def test_sinks_take_share_without_value(step: str, options: dict[str, Any]) -> None:
    out, expected = run(STEPS[step], sinks=SINKS, **options)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("chunk", [1, 8, 200])
def test_query_sees_own_chunk_alone(step: list[tuple[int, int]], chunk: int) -> None:
    out, expected = run(step, chunk=chunk)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("value_dim", [8, 24])
def test_values_may_have_another_size(value_dim: int) -> None:
    out, expected = run(STEPS["decodes between prefills"], value_dim=value_dim)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_query_sees_picked_keys_alone(softcap: float | None) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(4, 4, DIM), torch.randn(12, 2, DIM), torch.randn(12, 2, DIM)
    # One sequence of 7 keys has 3 new tokens, one of 5 has one. A pick of a key to come counts for nothing.
    picked = [torch.tensor([[0, 2, 4], [1, 5, 6], [6, 0, 3]]), torch.tensor([[1, 4]])]
    plan = plan_picked([0, 3, 4], [0, 7, 12], picked, torch.float32)
    out = attention.padded_attention(plan, query, key, value, softcap=softcap)
    for row, seen in enumerate([[0, 2, 4], [1, 5], [0, 3, 6], [8, 11]]):
        expected = plain(query[row : row + 1], key[seen], value[seen], window=None, chunk=None, softcap=softcap)
        torch.testing.assert_close(out[row : row + 1], expected)


def test_the_models_own_scale_is_used() -> None:
    out, expected = run(STEPS["decodes between prefills"], scaling=0.7)
    torch.testing.assert_close(out, expected)


def test_reference_attention_distinguishes_each_option() -> None:
    step = STEPS["decodes between prefills"]
    changes: list[dict[str, Any]] = [
        {"window": 16},
        {"chunk": 16},
        {"softcap": 0.5},
        {"scaling": 0.7},
        {"sinks": SINKS},
    ]
    results = [run(step, **options)[1] for options in ({}, *changes)]
    assert all(not torch.allclose(a, b, atol=0.01) for a, b in itertools.combinations(results, 2))


def test_padding_at_most_doubles_a_row() -> None:
    lengths = [1, 2, 3, 5, 8, 13, 21, 34, 55, 90]
    plan = plan_step(list(range(11)), starts(lengths), None, torch.float32, CPU)
    for group in plan.groups:
        padded = len(group.key_index) // len(group.rows)
        assert all(padded < 2 * lengths[row] for row in group.rows)


def test_padded_row_reads_own_keys_only() -> None:
    plan = plan_step([0, 1, 2], [0, 5, 11], None, torch.float32, CPU)
    (group,) = plan.groups
    assert group.rows.tolist() == [0, 1]
    assert group.key_index.view(2, 6).tolist() == [[0, 1, 2, 3, 4, 0], [5, 6, 7, 8, 9, 10]]
    assert group.mask is not None and group.mask[:, 0, 0, 5].tolist() == [float("-inf"), 0]


class Recorder(TorchDispatchMode):
    """Notes the arguments of FlashAttention's operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.torch_attn._varlen_attn.default:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


def call(**changes: Any) -> AttentionCall:
    plain_call: dict[str, Any] = {"kind": FULL, "query_heads": 8, "key_heads": 2, "key_size": 64, "value_size": 64}
    return AttentionCall(**(plain_call | changes))


def flash(call: AttentionCall, *, sinks: bool = False) -> tuple[torch.Tensor, tuple[Any, ...]]:
    """Return what FlashAttention gives for two sequences, of 1 and 4 new tokens, and its operator's arguments."""
    with FakeTensorMode(), Recorder() as recorder:
        query, keys, values = (
            torch.empty(tokens, heads, size, dtype=torch.bfloat16)
            for tokens, heads, size in (
                (5, call.query_heads, call.key_size),
                (44, call.key_heads, call.key_size),
                (44, call.key_heads, call.value_size),
            )
        )
        arguments = {
            "cu_seq_lens_q": torch.empty(3, dtype=torch.int32),
            "cu_seq_lens_k": {call.kind: torch.empty(3, dtype=torch.int32)},
            "max_length_q": 4,
            "max_length_k": {call.kind: 34},
        }
        own_sinks = torch.empty(call.query_heads, dtype=torch.bfloat16) if sinks else None
        out = flash_attention(call, query, keys, values, arguments, 0.3, own_sinks)
    (recorded,) = recorder.calls
    return out, recorded


@pytest.mark.parametrize(("window", "expected"), [(None, [-1, 0]), (20, [19, 0])])
def test_flash_attention_gets_expected_arguments(window: int | None, expected: list[int]) -> None:
    kind = FULL if window is None else SLIDING
    out, recorded = flash(call(kind=kind, window=window))
    query, key, value, queries, keys, max_q, max_k, is_causal, scale, window_size, gqa = recorded
    assert (out.shape, out.dtype) == ((5, 8, 64), torch.bfloat16)
    assert (query.shape, key.shape, value.shape) == ((5, 8, 64), (44, 2, 64), (44, 2, 64))
    assert (queries.dtype, keys.dtype, max_q, max_k) == (torch.int32, torch.int32, 4, 34)
    assert (is_causal, scale, window_size, gqa) == (window is None, 0.3, expected, True)


def test_flash_attention_pads_smaller_values() -> None:
    out, (query, key, value, *_) = flash(call(key_size=192, value_size=128))
    assert (query.shape[-1], key.shape[-1], value.shape[-1], out.shape[-1]) == (192, 192, 192, 128)


def test_flash_attention_with_sinks_keeps_shape() -> None:
    out, _ = flash(call(), sinks=True)
    assert (out.shape, out.dtype) == ((5, 8, 64), torch.bfloat16)


def test_log_sum_exp_gives_sinks_their_share() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, DIM), torch.randn(9, 4, DIM), torch.randn(9, 4, DIM)
    scores = torch.einsum("qhd,khd->hqk", query, key) * DIM**-0.5
    without = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
    expected = plain(query, key, value, window=None, chunk=None, sinks=SINKS)
    torch.testing.assert_close(give_sinks_their_share(without, scores.logsumexp(-1), SINKS), expected)


def test_flash_attention_serves_no_cpu() -> None:
    assert flash_rejection_reason(call(), CPU, torch.bfloat16) == "device is cpu"


class FakeGpu:
    """Stands in for `torch.cuda` where there is none."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._capability = capability

    def get_device_capability(self, device: torch.device) -> tuple[int, int]:
        return self._capability

    def get_device_name(self, device: torch.device) -> str:
        return "Tesla T4"


@pytest.mark.parametrize(
    ("capability", "dtype", "changes", "reason"),
    [
        ((7, 5), torch.float16, {}, "Tesla T4 is older than Ampere"),
        ((8, 0), torch.float32, {}, "dtype is torch.float32"),
        ((8, 0), torch.bfloat16, {"key_size": 320}, "head dimension is 320"),
        ((8, 0), torch.bfloat16, {"value_size": 320}, "head dimension is 320"),
        ((8, 0), torch.bfloat16, {"key_size": 60, "value_size": 60}, "head dimension is 60"),
        ((9, 0), torch.bfloat16, {"softcap": 50.0}, "the model caps its attention scores"),
        ((9, 0), torch.bfloat16, {"chunk": 8192}, "the model attends in chunks"),
        ((9, 0), torch.bfloat16, {"is_indexed": True}, "an indexer picks the keys"),
        ((8, 0), torch.bfloat16, {"key_size": 256, "has_sinks": True}, None),
    ],
)
def test_reason_against_flash_attention_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    changes: dict[str, Any],
    reason: str | None,
) -> None:
    monkeypatch.setattr(torch, "cuda", FakeGpu(capability))
    assert flash_rejection_reason(call(**changes), torch.device("cuda", 0), dtype) == reason


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        ([call()] * 2, "flash"),
        ([call(), call(key_size=512), call()], "flash; padded for 1 of 3 calls (head dimension is 512)"),
        ([call(chunk=8)] * 2, "padded (the model attends in chunks)"),
    ],
)
def test_description_tells_which_calls_are_padded(
    monkeypatch: pytest.MonkeyPatch, calls: list[AttentionCall], text: str
) -> None:
    monkeypatch.setattr(torch, "cuda", FakeGpu((9, 0)))
    assert describe_attention(Layout(calls=tuple(calls)), torch.device("cuda", 0), torch.bfloat16) == text
