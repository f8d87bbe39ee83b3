"""An engine's batch in this process, whose loop is turned by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from container.engine.messages import Cancel, EngineConfig, Step, Submit
from container.engine.sequence import FinishReason, Sampling
from container.engine.worker import model
from container.engine.worker.batch import Batch


class Engine:
    """A batch whose loop is turned by hand, so that a test decides what happens between two steps."""

    def __init__(self, model_dir: str, **settings: Any) -> None:
        defaults = {"kv_cache_tokens": 2048, "max_batch_tokens": 64, "threads": 1}
        config = EngineConfig(model_dir=model_dir, device="cpu", **(defaults | settings))
        loaded = model.load(config)
        self.crashes: list[Exception] = []
        self.steps: list[Step] = []
        self.loads: list[tuple[int, int]] = []
        """Sequences that ran and that waited, at each step's report."""
        self.output: dict[int, list[int]] = {}
        self.finished: dict[int, FinishReason] = {}
        self.failed: dict[int, str] = {}
        """Why sequences failed."""
        self.batch = Batch(loaded, config, on_step=self._take, on_crash=self.crashes.append)
        self.batch.current_batch = 0
        self.info = self.batch.info(loaded, load_seconds=0.0)

    def _take(self, step: Step) -> None:
        for failure in step.failed:
            assert failure.id not in {*self.finished, *self.failed}, "a sequence ends once"
            self.failed[failure.id] = failure.reason
        self.steps.append(step)
        scheduler = self.batch.processor.scheduler
        self.loads.append((len(scheduler.active_requests), len(scheduler.waiting_requests)))
        for new in step.tokens:
            assert new.id not in {*self.finished, *self.failed}, "what has ended has no more tokens"
            self.output.setdefault(new.id, []).extend(new.token_ids)
            if new.finish_reason is not None:
                self.finished[new.id] = new.finish_reason

    @property
    def preemptions(self) -> int:
        return sum(step.preemptions for step in self.steps)

    def submit(
        self, id: int, prompt: list[int], *, newcomer: bool = False, output_ids: Iterable[int] = (), **sampling: Any
    ) -> None:
        wanted = Sampling(**({"max_new_tokens": 16} | sampling))
        self.batch.submit(Submit(id, prompt, wanted, newcomer, list(output_ids)))

    def cancel(self, id: int) -> None:
        self.batch.cancel(Cancel(id))

    def turn(self) -> None:
        assert self.batch._generation_loop_body(self.batch.processor, bootstrapping=False)

    def turn_until(self, done: Callable[[], bool]) -> None:
        idle_turns = 0
        while not done():
            reports = len(self.steps)
            self.turn()
            idle_turns = idle_turns + 1 if len(self.steps) == reports else 0
            assert idle_turns < 20 and len(self.steps) < 5000, "it does not end"

    def settle(self, ids: Iterable[int]) -> None:
        """Turn until all have finished or failed."""
        wanted = list(ids)
        self.turn_until(lambda: all(id in self.finished or id in self.failed for id in wanted))

    def finish(self, ids: Iterable[int]) -> list[list[int]]:
        wanted = list(ids)
        self.settle(wanted)
        assert not self.failed
        return [self.output[id] for id in wanted]

    def generate(self, prompts: list[list[int]], **sampling: Any) -> list[list[int]]:
        """Generate from all prompts in one batch."""
        first = 1 + max((*self.output, *self.failed), default=-1)
        for id, prompt in enumerate(prompts, first):
            self.submit(id, prompt, **sampling)
        return self.finish(range(first, first + len(prompts)))

    def assert_nothing_is_held(self) -> None:
        processor = self.batch.processor
        assert not processor.has_pending_requests() and not processor.scheduler.waiting_requests_order
        processor.cache.evict_cached_blocks()
        processor.cache.pool.try_to_free_sectors()
        assert processor.cache.pool.num_free_sectors == processor.cache.num_sectors
