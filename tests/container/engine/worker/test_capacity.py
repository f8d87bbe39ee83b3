from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from container.engine.messages import EngineConfig
from container.engine.worker import capacity, memory
from container.engine.worker.capacity import plan_capacity
from container.engine.worker.layout import Layout
from container.engine.worker.model import LoadedModel, load
from container.engine.worker.refusal import ModelRefused
from testing.tiny_models import TinyModel

FREE = 12 << 30


@pytest.fixture
def loaded(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    for module in (memory, capacity):
        monkeypatch.setattr(module, "available_bytes", lambda device: FREE)
    return load(settings(tiny()))


def settings(model_dir: str = "", **more: Any) -> EngineConfig:
    return EngineConfig(model_dir=model_dir, device="cpu", threads=1, **more)


def with_layout(loaded: LoadedModel, **changes: Any) -> LoadedModel:
    return replace(loaded, layout=replace(loaded.layout, **changes))


def test_cache_holds_all_that_can_run(loaded: LoadedModel) -> None:
    plan = plan_capacity(loaded, settings())
    assert (plan.batch_tokens, plan.running, plan.cache_tokens) == (256, 64, 64 * loaded.max_model_len)


@pytest.mark.parametrize(("state_bytes", "running"), [(1 << 20, 64), (128 << 20, 32), (FREE, 1)])
def test_states_take_third_of_memory(loaded: LoadedModel, state_bytes: int, running: int) -> None:
    assert plan_capacity(with_layout(loaded, state_bytes=state_bytes), settings(kv_cache_tokens=64)).running == running


def test_states_leave_less_for_the_cache(loaded: LoadedModel) -> None:
    long = replace(loaded, max_model_len=1 << 20)
    plans = [plan_capacity(with_layout(long, state_bytes=size << 20), settings()) for size in (0, 32, 64)]
    assert plans[0].cache_tokens > plans[1].cache_tokens > plans[2].cache_tokens


def test_keys_of_indexers_count_per_token(loaded: LoadedModel) -> None:
    long, own = replace(loaded, max_model_len=1 << 20), loaded.kv_bytes_per_token
    plain, indexed = (plan_capacity(with_layout(long, index_bytes_per_token=n), settings()) for n in (0, own))
    assert indexed.cache_tokens == pytest.approx(plain.cache_tokens / 2, abs=1)


def test_states_that_fill_memory_are_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ModelRefused, match=rf"no memory is left for a KV cache .*, {FREE} bytes of states\)"):
        plan_capacity(with_layout(loaded, state_bytes=FREE), settings())


def test_model_without_attention_has_small_pages(loaded: LoadedModel) -> None:
    without = replace(loaded, layout=Layout(calls=(), state_bytes=1 << 20))
    assert without.kv_bytes_per_token == 16 * 4
    assert plan_capacity(without, settings()).cache_tokens == 64 * loaded.max_model_len
