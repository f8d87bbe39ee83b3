from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from container.engine.messages import EngineConfig, Step, Submit
from container.engine.sequence import Sampling
from container.engine.worker.batch import Batch
from container.engine.worker.model import LoadedModel, load
from container.engine.worker.refusal import ModelRefused
from container.engine.worker.self_check import check_tokens
from testing.exactness import Reference
from testing.model_zoo import tiny_checkpoint, zoo_prompts

COUNTS_POSITIONS_BY_STEP = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, input_ids=None, position_ids=None, **kwargs):
        return super().forward(input_ids=input_ids, **kwargs)
"""


def load_batch(directory: str, **settings: Any) -> tuple[Batch, LoadedModel, list[Step]]:
    config = EngineConfig(model_dir=directory, device="cpu", threads=1, max_model_len=256, **settings)
    loaded, steps = load(config), list[Step]()
    return Batch(loaded, config, on_step=steps.append, on_crash=lambda error: None), loaded, steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", ["gpt_oss", "qwen3_5_text"])
def test_right_model_passes_unseen(tmp_path: Path, model_type: str, dtype: str) -> None:
    directory = tiny_checkpoint(AutoModelForCausalLM, model_type, tmp_path)
    batch, loaded, steps = load_batch(directory, kv_cache_tokens=512, dtype=dtype, unverified_models=True)
    free = batch.processor.cache.pool.num_free_sectors
    check_tokens(batch, loaded, 256)
    cache = batch.processor.cache
    assert not steps and cache.pool.num_free_sectors == free
    assert not any(allocator.ledger.cached_blocks for allocator in cache.cache_allocators.values())
    assert loaded.model.config._attn_implementation == "longhaul_varlen"


def test_model_with_positions_by_step_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = Path(tiny_checkpoint(AutoModelForCausalLM, "llama", tmp_path / "own"))
    config = (directory / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "own"')
    classes = '"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}'
    (directory / "config.json").write_text(config.rstrip().removesuffix("}").rstrip() + f",\n{classes}}}")
    (directory / "own.py").write_text(COUNTS_POSITIONS_BY_STEP)
    batch, loaded, _ = load_batch(str(directory), kv_cache_tokens=512, trust_remote_code=True)
    assert not loaded.is_measured
    with pytest.raises(ModelRefused, match="own gives other tokens in batches than its own forward pass"):
        check_tokens(batch, loaded, 256)


def test_model_with_hidden_state_is_refused(tmp_path: Path) -> None:
    directory = tiny_checkpoint(AutoModelForCausalLM, "recurrent_gemma", tmp_path)
    batch, loaded, _ = load_batch(directory, kv_cache_tokens=512, unverified_models=True)
    with pytest.raises(ModelRefused, match="recurrent_gemma gives other tokens in batches"):
        check_tokens(batch, loaded, 256)


def test_checked_batch_serves_as_new(tmp_path: Path) -> None:
    directory = tiny_checkpoint(AutoModelForCausalLM, "lfm2", tmp_path)
    config = EngineConfig(
        model_dir=directory, device="cpu", threads=1, max_model_len=256, kv_cache_tokens=512, unverified_models=True
    )
    loaded, steps = load(config), queue.SimpleQueue[Step]()
    batch = Batch(loaded, config, on_step=steps.put, on_crash=lambda error: None)
    check_tokens(batch, loaded, 256)
    batch.start()
    (prompt,) = zoo_prompts(1, (70,))
    batch.submit(Submit(7, prompt, Sampling(max_new_tokens=8)))
    output: list[int] = []
    while len(output) < 8:
        for new in steps.get(timeout=20).tokens:
            assert new.id == 7
            output += new.token_ids
    batch.stop(block=True)
    assert [output] == Reference(directory).generate([prompt], new_tokens=8)
