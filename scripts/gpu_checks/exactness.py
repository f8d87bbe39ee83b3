"""Greedy float32 tokens of the batch on the device, compared with those of `model.generate` on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from testing.exactness import Exactness, Reference
from testing.tiny_models import VOCABULARY, random_prompt, save_tiny_family

from .engine import Engine
from .settings import Settings

LENGTHS = (1, 5, 31, 70, 130)
"""Lengths of the prompts in turn, from one token to more than a step and a window take."""


def run(settings: Settings) -> dict[str, Any]:
    exactness = Exactness()
    for family in settings.families:
        directory = save_tiny_family(Path(settings.folder) / f"exact-{family}", family)
        prompts = [random_prompt(LENGTHS[row % len(LENGTHS)], row) for row in range(settings.compared_rows)]
        sizes: dict[str, Any] = {"kv_cache_tokens": 4096, "max_batch_tokens": 64}
        engine = Engine(directory, device=settings.device, dtype="float32", **sizes)
        assert engine.info.vocab_size == VOCABULARY
        got = [output.ids for output in engine.generate(prompts, settings.compared_tokens)]
        engine.close()
        reference = Reference(directory)
        expected = reference.generate(prompts, new_tokens=settings.compared_tokens)
        exactness.check(reference, prompts, got, expected, test=family)
    assert not exactness.has_too_many_ties, f"too many rows left at ties: {exactness.ties}"
    return {"families": list(settings.families), "rows": exactness.rows, "ties": exactness.ties}
