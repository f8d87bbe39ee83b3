"""`scripts/check-real-models [NAME…]`: texts of small real models in our batch, compared with those of `generate`.

Each model is fetched if it isn't there. One table's row is one way of running prompts; a row that differs ends the
script with status 1. Texts are compared token for token; where two tokens' scores are as good as equal, either may come
(see `testing/exactness.py`), which is counted as a tie.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fetch_model
import torch
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from testing import ROOT
from testing.container.hand_turned_engine import Engine
from testing.exactness import Reference, describe_tie

NEW_TOKENS = 32
STEP_TOKENS = 256
"""Tokens of a step: the long documents are cut into pieces of this size."""
LONG_TOKENS = 2600
PREFIX_TOKENS = 400
TIGHT_TOKENS = 320
"""Size of the tight cache: eight of the prompts don't fit into it with their answers."""
DOCUMENTS = ("docs/architecture.md", "docs/reliability.md")
CODE = (
    "def is_prime(number):\n",
    "def reverse_words(text):\n    ",
    "class Stack:\n    def __init__(self):\n",
    "SELECT name, count(*)\nFROM orders\n",
    "import json\n\nwith open('data.json') as file:\n",
    "# Returns the n-th Fibonacci number.\ndef fibonacci(n):\n",
)
QUESTIONS = ("What is this?", "Who reads it?", "Why?", "In short:", "The first sentence says", "It does not say")


@dataclass(slots=True)
class Prompts:
    """Prompts of one model, as ids."""

    mixed: list[list[int]]
    """Ten English texts, as a chat where the model has a template, and six beginnings of code."""
    long: list[list[int]]
    sharing: list[list[int]]
    """Prompts that begin with the same page and end differently."""


@dataclass(slots=True)
class Verdict:
    way: str
    prompts: list[list[int]]
    outcomes: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)

    def compare(self, reference: Reference | None, got: list[list[int]], expected: list[list[int]]) -> Verdict:
        """Count the rows that are equal. Without a reference, whose scores tell ties, any other row differs."""
        for number, (prompt, row, due) in enumerate(zip(self.prompts, got, expected, strict=True)):
            if row == due:
                self.outcomes["equal"] += 1
                continue
            outcome, detail = "differs", f"{row} instead of {due}"
            if reference is not None:
                try:
                    outcome, detail = "tie", describe_tie(reference, prompt, row, due)
                except AssertionError as error:
                    detail = str(error)
            self.outcomes[outcome] += 1
            self.details.append(f"{self.way}, prompt {number}: {outcome}: {detail}")
        return self

    def line(self, model: str) -> str:
        longest = max(map(len, self.prompts))
        counts = "  ".join(f"{self.outcomes[outcome]:>7}" for outcome in ("equal", "tie", "differs"))
        return f"{model:<28} {self.way:<26} {len(self.prompts):>7}  {longest:>7}  {counts}"


def read_prompts(tokenizer: Any) -> Prompts:
    def ids(text: str) -> list[int]:
        encoded: list[int] = tokenizer(text)["input_ids"]
        return encoded

    def chat(text: str) -> list[int]:
        if tokenizer.chat_template is None:
            return ids(text)
        messages = [{"role": "user", "content": text}]
        return ids(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    lines = (ROOT / "examples/documents.jsonl").read_text(encoding="utf-8").splitlines()
    english = [json.loads(line)["body"]["messages"][-1]["content"] for line in lines[2:12]]
    documents = [ids((ROOT / name).read_text(encoding="utf-8")) for name in DOCUMENTS]
    page = documents[0][:PREFIX_TOKENS]
    return Prompts(
        mixed=[*map(chat, english), *map(ids, CODE)],
        long=[document[:LONG_TOKENS] for document in documents],
        sharing=[[*page, *tokenizer(question, add_special_tokens=False)["input_ids"]] for question in QUESTIONS],
    )


def run_ways(directory: Path) -> Iterator[Verdict]:
    """Run the prompts in every way, and yield what each comes to."""
    prompts = read_prompts(AutoTokenizer.from_pretrained(directory))
    reference = Reference(str(directory), eos_token_id=None)
    expected = reference.generate(prompts.mixed, new_tokens=NEW_TOKENS)
    roomy = Engine(str(directory), kv_cache_tokens=8192, max_batch_tokens=STEP_TOKENS)
    greedy = {"max_new_tokens": NEW_TOKENS}
    together = roomy.generate(prompts.mixed, **greedy)
    yield Verdict(f"{len(prompts.mixed)} at once", prompts.mixed).compare(reference, together, expected)
    long = roomy.generate(prompts.long, **greedy)
    whole = reference.generate(prompts.long, new_tokens=NEW_TOKENS)
    yield Verdict(f"in pieces of {STEP_TOKENS}", prompts.long).compare(reference, long, whole)
    sharing = [*roomy.generate(prompts.sharing[:1], **greedy), *roomy.generate(prompts.sharing[1:], **greedy)]
    apart = reference.generate(prompts.sharing, new_tokens=NEW_TOKENS)
    yield Verdict("shared prefix", prompts.sharing).compare(reference, sharing, apart)
    yield sample(roomy, prompts.mixed)
    del roomy
    gc.collect()
    tight = Engine(str(directory), kv_cache_tokens=TIGHT_TOKENS, max_batch_tokens=64)
    chosen = prompts.mixed[-8:]
    got = tight.generate(chosen, **greedy)
    verdict = Verdict(f"tight cache, {tight.preemptions} preempted", chosen)
    if not tight.preemptions:
        verdict.details.append("the tight cache held everything: nothing was preempted")
        verdict.outcomes["differs"] += 1
    yield verdict.compare(reference, got, expected[-8:])


def sample(engine: Engine, prompts: list[list[int]]) -> Verdict:
    """Sample with a seed for each prompt, first all at once, then each alone."""
    samplings: list[dict[str, Any]] = [
        {"temperature": 0.8, "top_p": 0.95, "seed": seed, "max_new_tokens": NEW_TOKENS} for seed in range(len(prompts))
    ]
    first = 1 + max(engine.output)
    for number, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        engine.submit(first + number, prompt, **sampling)
    together = engine.finish(range(first, first + len(prompts)))
    alone = [engine.generate([prompt], **sampling)[0] for prompt, sampling in zip(prompts, samplings, strict=True)]
    return Verdict("seeded, alone and at once", prompts).compare(None, together, alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(fetch_model.MODELS)}; all if not given"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".models", help="folder of the models")
    options = parser.parse_args()
    names = options.names or list(fetch_model.MODELS)
    if unknown := sorted({*names} - {*fetch_model.MODELS}):
        parser.error(f"no such model: {', '.join(unknown)}")
    torch.set_grad_enabled(False)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    print(f"{'model':<28} {'way':<26} prompts  longest    equal      tie  differs", flush=True)
    details, differing = [], 0
    for name in names:
        directory, began = options.folder / name, time.process_time()
        if not directory.is_dir():
            fetch_model.fetch(directory)
        for verdict in run_ways(directory):
            print(verdict.line(name), flush=True)
            details += [f"{name}: {detail}" for detail in verdict.details]
            differing += verdict.outcomes["differs"]
        print(f"{name:<28} {time.process_time() - began:.0f} CPU seconds", flush=True)
    print(*details, sep="\n")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
