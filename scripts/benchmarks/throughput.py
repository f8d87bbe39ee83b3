"""Throughput of the server beside its limits and its alternatives, in one run on one machine.

served    `./serve`, all prompts in one JSON-lines body over HTTP
other     the same, by the `./serve` of another checkout (`--other FOLDER`), such as an older version's
direct    the same continuous batch fed directly, without HTTP, text or a second process
limit     a plain forward loop over `DynamicCache`: each prompt prefilled once without padding, then all rows decoded
          together, finished ones dropped. No scheduler, no paging, no sampling: the forward passes alone.
packed    the same loop with linear layers packed as the engine packs them: the limit of this engine's own kernels
static    `model.generate` in arrival-order batches of 16, each as long as its longest row

All generate the same numbers of tokens for the same prompts, greedily, ignoring end-of-sequence. Runs alternate; the
table shows medians, spread, and the median of each round's ratio, which a machine that grows slower moves little.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from container.engine.messages import EngineConfig, Step, Submit
from container.engine.sequence import Sampling
from container.engine.worker.batch import Batch
from container.engine.worker.model import load
from container.engine.worker.packed_linear import pack_linears
from testing import ROOT

from .serving import Served

SYSTEMS = ("served", "direct", "limit", "packed", "static")
OTHER = "other"
STATIC_BATCH = 16
WARM_UP_SHARE = 3
_FIRST_TOKENS = 1000


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, and how many tokens to generate from it."""

    ids: list[int]
    new_tokens: int


def make_prompts(count: int, model_dir: Path, seed: int) -> list[Prompt]:
    """Make prompts of real texts, cut to 16 to 256 tokens; output lengths are long-tailed from 16 to 384."""
    lines = (ROOT / "examples/documents.jsonl").read_text().splitlines()
    texts = [json.loads(line)["body"]["messages"][-1]["content"] for line in lines]
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    draw = random.Random(seed)
    prompts = []
    for index in range(count):
        ids = tokenizer(texts[index % len(texts)])["input_ids"][: draw.randint(16, 256)]
        prompts.append(Prompt(ids, round(16 * (384 / 16) ** (draw.random() ** 2))))
    return prompts


def with_new_prefix(prompts: list[Prompt], round_: int) -> list[Prompt]:
    """Copy the prompts with a first token of this round's own, so that no prefix cache helps."""
    return [Prompt([_FIRST_TOKENS + round_, *prompt.ids[1:]], prompt.new_tokens) for prompt in prompts]


class System(Protocol):
    def run(self, prompts: list[Prompt]) -> list[int]:
        """Generate, and return the number of new tokens of each prompt."""
        ...

    def close(self) -> None: ...


class OverHTTP:
    """`./serve`, in processes of its own."""

    def __init__(self, model_dir: Path, checkout: Path = ROOT) -> None:
        self._served = Served(model_dir, checkout, LONGHAUL_DTYPE="float32")

    def run(self, prompts: list[Prompt]) -> list[int]:
        body = b"".join(json.dumps(_request(prompt)).encode() + b"\n" for prompt in prompts)
        connection = self._served.connect()
        connection.request("POST", "/invocations", body, {"Content-Type": "application/jsonlines"})
        answers = [json.loads(line) for line in connection.getresponse().read().splitlines()]
        connection.close()
        return [answer["usage"]["completion_tokens"] for answer in answers]

    def close(self) -> None:
        self._served.close()


def _request(prompt: Prompt) -> dict[str, object]:
    return {"prompt": prompt.ids, "max_tokens": prompt.new_tokens, "temperature": 0, "ignore_eos": True}


class Direct:
    """The engine's batch in this process."""

    def __init__(self, model_dir: Path) -> None:
        settings = EngineConfig(model_dir=str(model_dir), dtype="float32")
        self._loaded = load(settings)
        self._batch = Batch(self._loaded, settings, on_step=self._take, on_crash=self._exit)
        self._outputs: dict[int, list[int]] = {}
        self._open: set[int] = set()
        self._done = threading.Event()
        self._next_id = 0
        self._batch.start()

    def run(self, prompts: list[Prompt]) -> list[int]:
        first, self._next_id = self._next_id, self._next_id + len(prompts)
        self._outputs = {id: [] for id in range(first, self._next_id)}
        self._open = set(self._outputs)
        self._done.clear()
        for id, prompt in zip(self._outputs, prompts, strict=True):
            self._batch.submit(Submit(id, prompt.ids, Sampling(max_new_tokens=prompt.new_tokens)))
        self._done.wait()
        return [len(output) for output in self._outputs.values()]

    def _take(self, step: Step) -> None:
        for new in step.tokens:
            self._outputs[new.id] += new.token_ids
            if new.finish_reason is not None:
                self._open.discard(new.id)
        if not self._open:
            self._done.set()

    def _exit(self, error: Exception) -> None:
        print(f"the batch died: {error}", file=sys.stderr)
        os._exit(1)

    def close(self) -> None:
        self._batch.stop()


class Limit:
    """Forward passes and nothing else."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model

    def run(self, prompts: list[Prompt]) -> list[int]:
        caches = [self._prefill(prompt) for prompt in prompts]
        tokens = torch.stack([token for token, _ in caches])
        cache, lengths = self._merge([cache for _, cache in caches], prompts)
        outputs = [[int(token)] for token in tokens]
        rows = list(range(len(prompts)))
        while True:
            going = [index for index, row in enumerate(rows) if len(outputs[row]) < prompts[row].new_tokens]
            if not going:
                return [len(output) for output in outputs]
            if len(going) < len(rows):
                kept = torch.tensor(going)
                cache.batch_select_indices(kept)
                tokens, lengths = tokens[kept], lengths[kept]
                rows = [rows[index] for index in going]
            tokens, lengths = self._decode(tokens, lengths, cache)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                outputs[row].append(token)

    def _prefill(self, prompt: Prompt) -> tuple[torch.Tensor, DynamicCache]:
        cache = DynamicCache(config=self._model.config)
        logits = self._model(torch.tensor([prompt.ids]), past_key_values=cache, logits_to_keep=1).logits
        return logits[0, -1].argmax(), cache

    def _merge(self, caches: list[DynamicCache], prompts: list[Prompt]) -> tuple[DynamicCache, torch.Tensor]:
        """Merge the caches of all rows into a left-padded one."""
        longest = max(len(prompt.ids) for prompt in prompts)
        merged = DynamicCache(config=self._model.config)
        for layer in range(len(caches[0].layers)):
            keys, values = (
                torch.cat([_left_pad(getattr(c.layers[layer], part), longest) for c in caches])
                for part in ("keys", "values")
            )
            merged.update(keys, values, layer)
        return merged, torch.tensor([len(prompt.ids) for prompt in prompts])

    def _decode(
        self, tokens: torch.Tensor, lengths: torch.Tensor, cache: DynamicCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        width = cache.get_seq_length() + 1
        mask = torch.arange(width) >= width - 1 - lengths[:, None]
        logits = self._model(
            tokens[:, None], attention_mask=mask.long(), position_ids=lengths[:, None], past_key_values=cache
        ).logits
        return logits[:, -1].argmax(-1), lengths + 1

    def close(self) -> None:
        pass


def _left_pad(states: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))


class Static:
    """Batches of `model.generate`, as a first version is often written."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model

    def run(self, prompts: list[Prompt]) -> list[int]:
        counts: list[int] = []
        for start in range(0, len(prompts), STATIC_BATCH):
            counts += self._generate(prompts[start : start + STATIC_BATCH])
        return counts

    def _generate(self, prompts: list[Prompt]) -> list[int]:
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.tensor([[0] * (longest - len(prompt.ids)) + prompt.ids for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in prompts])
        new_tokens = max(prompt.new_tokens for prompt in prompts)
        out = self._model.generate(
            ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return [len(row[longest : longest + prompt.new_tokens]) for row, prompt in zip(out, prompts, strict=True)]

    def close(self) -> None:
        pass


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--other", type=Path, metavar="FOLDER", help="another checkout, set up, to compare with")


def run(options: argparse.Namespace) -> dict[str, Any]:
    prompts = make_prompts(options.prompts, options.model, options.seed)
    systems = _systems(options.model, options.only)
    if options.other is not None:
        systems[OTHER] = OverHTTP(options.model, options.other.resolve())
    seconds = measure(systems, prompts, options.runs)
    report(seconds, prompts)
    return {"jobs": [[len(prompt.ids), prompt.new_tokens] for prompt in prompts], "seconds": seconds}


def _systems(model_dir: Path, names: Sequence[str]) -> dict[str, System]:
    make: dict[str, Callable[[], System]] = {
        "served": lambda: OverHTTP(model_dir),
        "direct": lambda: Direct(model_dir),
        "limit": lambda: Limit(_plain(model_dir)),
        "packed": lambda: Limit(_packed(model_dir)),
        "static": lambda: Static(_plain(model_dir)),
    }
    return {name: make[name]() for name in names}


def _plain(model_dir: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model


def _packed(model_dir: Path) -> PreTrainedModel:
    model = _plain(model_dir)
    pack_linears(model)
    return model


def measure(
    systems: dict[str, System], prompts: list[Prompt], runs: int, *, warm_up_share: int = WARM_UP_SHARE
) -> dict[str, list[float]]:
    """Measure the seconds of each run. One prompt in `warm_up_share` warms up; the order of the systems turns from
    round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    names = list(systems)
    try:
        for round_ in range(runs + 1):
            todo = with_new_prefix(prompts if round_ else prompts[::warm_up_share], round_)
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                started = time.perf_counter()
                counts = systems[name].run(todo)
                took = time.perf_counter() - started
                assert counts == [prompt.new_tokens for prompt in todo], f"{name} did other work than it was given"
                print(f"round {round_} of {runs}: {name:7} {took:7.2f} s", file=sys.stderr, flush=True)
                if round_:
                    seconds[name].append(took)
    finally:
        for system in systems.values():
            system.close()
    return seconds


def report(seconds: dict[str, list[float]], prompts: list[Prompt]) -> None:
    tokens = sum(prompt.new_tokens for prompt in prompts)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{len(prompts)} prompts, {sum(len(j.ids) for j in prompts)} prompt tokens, {tokens} new tokens, float32")
    print("| system | median s | spread | new tokens/s | served is faster by a factor of |\n|---|---|---|---|---|")
    for name, times in seconds.items():
        spread = (max(times) - min(times)) / medians[name]
        ratio = ""
        if "served" in seconds:
            ratios = [own / served for own, served in zip(times, seconds["served"], strict=True)]
            ratio = f"{statistics.median(ratios):.3f}"
        print(f"| {name} | {medians[name]:.2f} | {spread:.0%} | {tokens / medians[name]:.1f} | {ratio} |")
