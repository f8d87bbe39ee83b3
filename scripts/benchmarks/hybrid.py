"""A hybrid model's throughput in the engine's batch beside a plain loop, in one run on one machine.

direct    the engine's batch, without HTTP, text or a second process
loop      a plain forward loop over `DynamicCache`, of all prompts at once: they have one length, so that nothing is
          padded. No scheduler, no paging, no sampling: the forward passes alone
packed    the same loop with linear layers packed as the engine packs them

The model is random, of Qwen 3.5's shape: 24 layers of hidden size 512, three of four with a recurrent state. All
generate the same number of tokens. Runs alternate; the table shows medians, spread, and the ratio to the plain loop.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from container.engine.worker.packed_linear import pack_linears, watched_weights

from .throughput import Direct, Prompt, System, measure

GOAL = 0.8
VOCABULARY = 8000
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 24,
    "layer_types": [*["linear_attention"] * 3, "full_attention"] * 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "max_position_embeddings": 4096,
    "eos_token_id": None,
    "pad_token_id": None,
}


class Loop:
    """Forward passes and nothing else, of prompts of one length."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model

    def run(self, prompts: list[Prompt]) -> list[int]:
        cache = DynamicCache(config=self._model.config)
        ids = torch.tensor([prompt.ids for prompt in prompts])
        made = 0
        while made < prompts[0].new_tokens:
            logits = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1].argmax(-1, keepdim=True)
            made += 1
        return [made] * len(prompts)

    def close(self) -> None:
        pass


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=16, help="sequences that run at once")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=96, help="tokens to generate from each")
    parser.add_argument("--runs", type=int, default=7)


def run(options: argparse.Namespace) -> dict[str, Any]:
    draw = random.Random(1)
    prompts = [
        Prompt([draw.randrange(10, VOCABULARY) for _ in range(options.prompt)], options.new)
        for _ in range(options.rows)
    ]
    with tempfile.TemporaryDirectory() as folder:
        _model().save_pretrained(folder)
        packed = _model()
        with watched_weights(packed) as read, torch.no_grad():
            packed(torch.tensor([prompts[0].ids]))
        pack_linears(packed, except_for=read)
        systems: dict[str, System] = {"direct": Direct(Path(folder)), "loop": Loop(_model()), "packed": Loop(packed)}
        seconds = measure(systems, prompts, options.runs, warm_up_share=1)
    report(seconds, options.rows * options.new)
    return {"rows": options.rows, "prompt": options.prompt, "new": options.new, "seconds": seconds}


def _model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3_5_text", **SHAPE)
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.train(False)
    return model


def report(seconds: dict[str, list[float]], tokens: int) -> None:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print("| system | median s | spread | new tokens/s | of the plain loop's |\n|---|---|---|---|---|")
    for name, times in seconds.items():
        spread = (max(times) - min(times)) / medians[name]
        share = medians["loop"] / medians[name]
        print(f"| {name} | {medians[name]:.2f} | {spread:.0%} | {tokens / medians[name]:.1f} | {share:.2f} |")
    print(f"the batch does {medians['loop'] / medians['direct']:.2f} of the plain loop's tokens; the goal is {GOAL}")
