"""The engine's batch in this process, and prompts for it."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from container.engine.messages import EngineConfig, Step, Submit
from container.engine.sequence import Sampling, TokenLogprobs
from container.engine.worker.batch import Batch
from container.engine.worker.model import load


@dataclass(slots=True)
class Output:
    """Tokens of one sequence, the times at which they were reported, and their log probabilities if asked for."""

    ids: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class Engine:
    """A running batch. `close` ends its thread."""

    def __init__(self, model_dir: str, **settings: Any) -> None:
        torch.set_grad_enabled(False)
        config = EngineConfig(model_dir=model_dir, **settings)
        self.loaded = load(config)
        self.batch = Batch(self.loaded, config, on_step=self._take, on_crash=self._stop)
        self.info = self.batch.info(self.loaded, 0.0)
        self._outputs: dict[int, Output] = {}
        self._open: set[int] = set()
        self._done = threading.Event()
        self._error: Exception | None = None
        self.batch.start()

    def generate(self, prompts: list[list[int]], new_tokens: int, **sampling: Any) -> list[Output]:
        """Generate from all prompts at once. Raises RuntimeError if the batch dies or fails one of them."""
        self._outputs = {id: Output() for id in range(len(prompts))}
        self._open = set(self._outputs)
        self._done.clear()
        for id, prompt in enumerate(prompts):
            self.batch.submit(Submit(id, prompt, Sampling(max_new_tokens=new_tokens, **sampling)))
        self._done.wait()
        if self._error is not None:
            raise RuntimeError("the batch died") from self._error
        return list(self._outputs.values())

    def _take(self, step: Step) -> None:
        now = time.perf_counter()
        for new in step.tokens:
            output = self._outputs[new.id]
            output.ids += new.token_ids
            output.times_s.append(now)
            output.logprobs += new.logprobs
            if new.finish_reason is not None:
                self._open.discard(new.id)
        if step.failed:
            self._error = RuntimeError(step.failed[0].reason)
        if not self._open or step.failed:
            self._done.set()

    def _stop(self, error: Exception) -> None:
        self._error = error
        self._done.set()

    def close(self) -> None:
        self.batch.stop()


def make_prompts(count: int, tokens: int, vocabulary: int, seed: int = 1) -> list[list[int]]:
    """Make random prompts, no two of which begin alike."""
    draw = random.Random(seed)
    return [[(seed * 1000 + row) % vocabulary, *draw.choices(range(vocabulary), k=tokens - 1)] for row in range(count)]
