"""Throughput of the server beside what bounds it and what it replaces, in one run on one machine.

served    `./serve`, all prompts in one JSON-lines body over HTTP
direct    the same continuous batch fed directly, without HTTP, text or a second process
limit     a plain forward loop over `DynamicCache`: each prompt prefilled once without padding, then all rows decoded
          together, finished ones dropped. No scheduler, no paging, no sampling: the forward passes alone.
packed    the same loop with linear layers packed as the engine packs them: the limit of this engine's own kernels
static    `model.generate` in arrival-order batches of 16, each as long as its longest row

All generate the same numbers of tokens for the same prompts, greedily, ignoring end-of-sequence. Runs alternate; the
table shows medians, spread, and ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from container.engine.batching import Batch
from container.engine.messages import EngineConfig, Step, Submit
from container.engine.model import load
from container.engine.packing import pack_linears
from container.engine.sequence import Sampling

ROOT = Path(__file__).resolve().parent.parent
STATIC_BATCH = 16
BUSY_PERCENT = 10.0


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt and how many tokens to generate from it."""

    prompt_ids: list[int]
    new_tokens: int


def make_jobs(count: int, model_dir: Path, seed: int) -> list[Job]:
    """Real texts, cut to 16 to 256 tokens; output lengths long-tailed from 16 to 384 (log-uniform, squared)."""
    lines = (ROOT / "examples/documents.jsonl").read_text().splitlines()
    texts = [json.loads(line)["body"]["messages"][-1]["content"] for line in lines]
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    draw = random.Random(seed)
    jobs = []
    for index in range(count):
        ids = tokenizer(texts[index % len(texts)])["input_ids"][: draw.randint(16, 256)]
        jobs.append(Job(ids, round(16 * (384 / 16) ** (draw.random() ** 2))))
    return jobs


class Served:
    """`./serve` in processes of its own."""

    def __init__(self, model_dir: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        environment = os.environ | {
            "LONGHAUL_MODEL": str(model_dir),
            "LONGHAUL_PORT": self._url.rpartition(":")[2],
            "LONGHAUL_DTYPE": "float32",
            "LONGHAUL_LOG_LEVEL": "WARNING",
        }
        self._process = subprocess.Popen([ROOT / "serve"], env=environment)
        while not self._ready():
            if self._process.poll() is not None:
                sys.exit("the server ended before it was ready")
            time.sleep(0.2)

    def _ready(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self._url}/ping", timeout=5).status == 200)
        except OSError:
            return False

    def run(self, jobs: list[Job]) -> list[list[int]]:
        body = b"".join(
            json.dumps(
                {"prompt": job.prompt_ids, "max_tokens": job.new_tokens, "temperature": 0, "ignore_eos": True}
            ).encode()
            + b"\n"
            for job in jobs
        )
        request = urllib.request.Request(f"{self._url}/invocations", body, {"Content-Type": "application/jsonlines"})
        with urllib.request.urlopen(request, timeout=3600) as answer:
            lines = [json.loads(line) for line in answer]
        assert [line["usage"]["completion_tokens"] for line in lines] == [job.new_tokens for job in jobs]
        return []

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


class Direct:
    """The engine's batch in this process."""

    def __init__(self, model_dir: Path) -> None:
        settings = EngineConfig(model_dir=str(model_dir), dtype="float32")
        self._loaded = load(settings)
        self._batch = Batch(self._loaded, settings, on_step=self._take, on_crash=self._crashed)
        self._outputs: dict[int, list[int]] = {}
        self._open: set[int] = set()
        self._done = threading.Event()
        self._next_id = 0
        self._batch.start()

    def run(self, jobs: list[Job]) -> list[list[int]]:
        first, self._next_id = self._next_id, self._next_id + len(jobs)
        self._outputs = {id: [] for id in range(first, self._next_id)}
        self._open = set(self._outputs)
        self._done.clear()
        for id, job in zip(self._outputs, jobs, strict=True):
            self._batch.submit(Submit(id, job.prompt_ids, Sampling(max_new_tokens=job.new_tokens)))
        self._done.wait()
        return list(self._outputs.values())

    def _take(self, step: Step) -> None:
        for new in step.tokens:
            self._outputs[new.id] += new.token_ids
            if new.finish_reason is not None:
                self._open.discard(new.id)
        if not self._open:
            self._done.set()

    def _crashed(self, error: Exception) -> None:
        print(f"the batch died: {error}", file=sys.stderr)
        os._exit(1)

    def close(self) -> None:
        self._batch.stop()


class Limit:
    """Nothing but forward passes."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model

    def run(self, jobs: list[Job]) -> list[list[int]]:
        caches = [self._prefill(job) for job in jobs]
        tokens = torch.stack([token for token, _ in caches])
        cache, lengths = self._merge([cache for _, cache in caches], jobs)
        outputs = [[int(token)] for token in tokens]
        rows = list(range(len(jobs)))
        while True:
            going = [place for place, row in enumerate(rows) if len(outputs[row]) < jobs[row].new_tokens]
            if not going:
                return outputs
            if len(going) < len(rows):
                kept = torch.tensor(going)
                cache.batch_select_indices(kept)
                tokens, lengths = tokens[kept], lengths[kept]
                rows = [rows[place] for place in going]
            tokens, lengths = self._decode(tokens, lengths, cache)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                outputs[row].append(token)

    def _prefill(self, job: Job) -> tuple[torch.Tensor, DynamicCache]:
        cache = DynamicCache(config=self._model.config)
        logits = self._model(torch.tensor([job.prompt_ids]), past_key_values=cache, logits_to_keep=1).logits
        return logits[0, -1].argmax(), cache

    def _merge(self, caches: list[DynamicCache], jobs: list[Job]) -> tuple[DynamicCache, torch.Tensor]:
        """One left-padded cache of all rows."""
        longest = max(len(job.prompt_ids) for job in jobs)
        merged = DynamicCache(config=self._model.config)
        for layer in range(len(caches[0].layers)):
            keys, values = (
                torch.cat([_left_pad(getattr(c.layers[layer], part), longest) for c in caches])
                for part in ("keys", "values")
            )
            merged.update(keys, values, layer)
        return merged, torch.tensor([len(job.prompt_ids) for job in jobs])

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
    """What people write first."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model

    def run(self, jobs: list[Job]) -> list[list[int]]:
        outputs: list[list[int]] = []
        for start in range(0, len(jobs), STATIC_BATCH):
            outputs += self._generate(jobs[start : start + STATIC_BATCH])
        return outputs

    def _generate(self, jobs: list[Job]) -> list[list[int]]:
        longest = max(len(job.prompt_ids) for job in jobs)
        ids = torch.tensor([[0] * (longest - len(job.prompt_ids)) + job.prompt_ids for job in jobs])
        mask = torch.tensor([[0] * (longest - len(job.prompt_ids)) + [1] * len(job.prompt_ids) for job in jobs])
        new_tokens = max(job.new_tokens for job in jobs)
        out = self._model.generate(
            ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return [row[longest : longest + job.new_tokens].tolist() for row, job in zip(out, jobs, strict=True)]

    def close(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / ".models/SmolLM2-135M-Instruct")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=["served", "direct", "limit", "packed", "static"])
    parser.add_argument("--json", type=Path, help="write the measures there")
    parser.add_argument("--busy", action="store_true", help="measure although the machine is not quiet")
    options = parser.parse_args()
    busy = psutil.cpu_percent(interval=3.0)
    if busy > BUSY_PERCENT and not options.busy:
        sys.exit(f"the machine is {busy:.0f} % busy; timings need a quiet one (--busy measures all the same)")
    torch.set_grad_enabled(False)
    jobs = make_jobs(options.prompts, options.model, options.seed)
    report(measure(contenders(options.model, options.only), jobs, options.runs), jobs, options.json)


def contenders(model_dir: Path, names: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    plain = _plain(model_dir)
    make: dict[str, Callable[[], Any]] = {
        "served": lambda: Served(model_dir),
        "direct": lambda: Direct(model_dir),
        "limit": lambda: Limit(plain),
        "packed": lambda: Limit(_packed(model_dir)),
        "static": lambda: Static(plain),
    }
    for name in names:
        made[name] = make[name]()
    return made


def _plain(model_dir: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model


def _packed(model_dir: Path) -> PreTrainedModel:
    model = _plain(model_dir)
    pack_linears(model)
    return model


def measure(systems: dict[str, Any], jobs: list[Job], runs: int) -> dict[str, list[float]]:
    """Seconds per run. The first round warms up and is thrown away; the order turns from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    names = list(systems)
    try:
        for round_ in range(runs + 1):
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                started = time.perf_counter()
                systems[name].run(jobs)
                took = time.perf_counter() - started
                print(f"round {round_} of {runs}: {name:7} {took:7.2f} s", file=sys.stderr, flush=True)
                if round_:
                    seconds[name].append(took)
    finally:
        for system in systems.values():
            system.close()
    return seconds


def report(seconds: dict[str, list[float]], jobs: list[Job], path: Path | None) -> None:
    tokens = sum(job.new_tokens for job in jobs)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{len(jobs)} prompts, {sum(len(j.prompt_ids) for j in jobs)} prompt tokens, {tokens} new tokens, float32")
    print("| system | median s | spread | new tokens/s | served is |\n|---|---|---|---|---|")
    for name, times in seconds.items():
        spread = (max(times) - min(times)) / medians[name]
        ratio = f"{medians[name] / medians['served']:.2f} x" if "served" in medians else ""
        print(f"| {name} | {medians[name]:.2f} | {spread:.0%} | {tokens / medians[name]:.1f} | {ratio} |")
    if path is not None:
        machine = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        path.write_text(json.dumps({"tokens": tokens, "seconds": seconds, "machine": machine}, indent=1))


if __name__ == "__main__":
    main()
