"""Poisoned models: tiny ones of all families with weights that are NaN, infinite, or so large that something overflows.

A model counts as poisoned if plain forward passes of `transformers` in the same precision, with attention scores in
float32 as kernels have them, give scores that are not numbers, or all equal, for at least one of its prompts. Every
such prompt must fail at that token, and be told so; every other one must be whole. `--models` poisoned ones are drawn
for each precision.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AttentionInterface, AutoModelForCausalLM

from container.engine.worker.score_guard import ALL_EQUAL, NOT_NUMBERS
from testing.container.hand_turned_engine import Engine
from testing.container.poisoned_models import Weights, save_poisoned
from testing.tiny_models import FAMILIES, VOCABULARY, random_prompt, save_tiny_family

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
VALUES = {
    "float32": (float("nan"), float("inf"), -float("inf"), 3e38, 1e25),
    "float16": (float("nan"), float("inf"), -float("inf"), 6e4, 2e4),
    "bfloat16": (float("nan"), float("inf"), -float("inf"), 3e38, 1e25),
}
"""Values of the poison by precision: the large ones overflow when they are multiplied or squared."""
NEW_TOKENS = 6
PREFIX_TOKENS = 40


@dataclass(frozen=True, slots=True)
class Poison:
    """A change of a whole tensor, of some of its rows, or of one element of them."""

    name: str
    rows: tuple[int, ...] | None
    column: int | None
    value: float

    @classmethod
    def draw(cls, draw: random.Random, weights: Weights, dtype: str) -> Poison:
        name = draw.choice(sorted(weights))
        rows, column = None, None
        if draw.random() < 0.6:
            height = weights[name].shape[0]
            rows = tuple(draw.sample(range(height), min(height, draw.choice((1, 1, 3)))))
            if weights[name].dim() == 2 and draw.random() < 0.3:
                column = draw.randrange(weights[name].shape[1])
        return cls(name, rows, column, draw.choice(VALUES[dtype]))

    def apply(self, weights: Weights) -> None:
        tensor = weights[self.name]
        rows = slice(None) if self.rows is None else list(self.rows)
        place = (rows,) if self.column is None else (rows, self.column)
        tensor[place] = torch.copysign(torch.full_like(tensor[place], abs(self.value)), tensor[place] * self.sign)

    @property
    def sign(self) -> float:
        return -1.0 if self.value < 0 else 1.0


def plain_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally from queries [1, Hq, T, D] to all keys of one sequence, every score written out."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1).float() for x in (key, value))
    scores = query.float() @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if sliding_window is not None:
        seen = seen.triu(1 - sliding_window)
    out = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1) @ value
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


class Plain:
    """Plain forward passes over a whole sequence, one for each token."""

    def __init__(self, model_dir: str, dtype: torch.dtype) -> None:
        AttentionInterface.register("plain", plain_attention)
        model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, attn_implementation="plain")
        self._model = model
        self._heads: list[torch.Tensor] = []
        # Bounded scores are finite, whatever they were: the head's own tell.
        model.get_output_embeddings().register_forward_hook(lambda m, i, output: self._heads.append(output))

    def fault(self, ids: list[int]) -> str | None:
        self._heads.clear()
        self._model(torch.tensor([ids]), use_cache=False)
        scores = self._heads[-1][0, -1].float()
        if not torch.isfinite(scores.max()):
            return NOT_NUMBERS
        return ALL_EQUAL if scores.min() == scores.max() else None


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=int, default=100, help="poisoned models of each precision")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))


def run(options: argparse.Namespace, faults: list[str]) -> dict[str, Any]:
    torch.set_grad_enabled(False)
    logging.disable(logging.ERROR)  # each engine logs its first fault
    results: dict[str, Any] = {}
    for dtype in options.dtypes:
        draw = random.Random(f"{options.seed} {dtype}")
        caught = harmless = number = 0
        while caught < options.models:
            number += 1
            found = list[str]()
            has_faults = try_model(draw, dtype, found)
            faults += [f"{dtype}, model {number}: {fault}" for fault in found]
            caught, harmless = caught + has_faults, harmless + (not has_faults)
            print(f"\r{dtype}: {caught} of {options.models}", end="", file=sys.stderr, flush=True)
        wrong = sum(fault.startswith(dtype) for fault in faults)
        print(f"\r{dtype}: {caught} poisoned models, {harmless} on which the poison had no effect, {wrong} wrong")
        results[dtype] = {"poisoned": caught, "harmless": harmless, "wrong": wrong}
    return results


def try_model(draw: random.Random, dtype: str, found: list[str]) -> bool:
    """Poison a model and generate from it. Return whether it was poisoned; what is wrong goes into `found`."""
    family = draw.choice(sorted(FAMILIES))
    with tempfile.TemporaryDirectory(prefix="longhaul-poison-") as name:
        whole = save_tiny_family(Path(name) / "whole", family)
        poison = Poison.draw(draw, load_file(Path(whole) / "model.safetensors"), dtype)
        model_dir = save_poisoned(whole, Path(name) / "poisoned", poison.apply)
        prompts = _prompts(draw, poison)
        engine = Engine(model_dir, dtype=dtype, max_batch_tokens=draw.choice((24, 64, 256)))
        for id, prompt in enumerate(prompts):
            engine.submit(id, prompt, max_new_tokens=NEW_TOKENS, logprobs=1, temperature=id % 2, seed=id)
        engine.settle(range(len(prompts)))
        plain = Plain(model_dir, DTYPES[dtype])
        for id, prompt in enumerate(prompts):
            if wrong := _wrong(plain, prompt, engine.output.get(id, []), engine.failed.get(id)):
                found.append(f"{family}, {poison}: prompt {id}: {wrong}")
    return bool(engine.failed) or bool(found)


def _prompts(draw: random.Random, poison: Poison) -> list[list[int]]:
    """Draw prompts with and without a shared beginning, some with a token of the poisoned row."""
    seed = draw.randrange(10**6)
    token = poison.rows[0] % VOCABULARY if poison.rows else 0
    others = [id if id != token else (token + 1) % VOCABULARY for id in random_prompt(PREFIX_TOKENS, seed)]
    rests = [[id if id != token else (token + 1) % VOCABULARY for id in random_prompt(9, seed + k)] for k in range(4)]
    return [rests[0], [*rests[1], token], others + rests[2], [*others, token, *rests[3]], [*rests[0], *rests[1]]]


def _wrong(plain: Plain, prompt: list[int], output: list[int], reason: str | None) -> str | None:
    """Compare a sequence's end with the scores of plain passes over the same tokens."""
    for number in range(len(output)):
        if fault := plain.fault(prompt + output[:number]):
            return f"token {number + 1} was reported, but its scores {fault}"
    if reason is None:
        return None if len(output) == NEW_TOKENS else f"it ended whole with {len(output)} tokens"
    fault = plain.fault(prompt + output)
    if fault is None:
        return f"it failed, but its scores are numbers: {reason}"
    return None if f"{fault} at output token {len(output) + 1}" in reason else f"scores {fault}, but told: {reason}"
