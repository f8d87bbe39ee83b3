"""The batch under random arrivals and cancellations, in a cache so small that sequences are preempted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from container.engine.worker.batch import PAGE_TOKENS
from testing.container.hand_turned_engine import Engine
from testing.fuzzing import fuzz_settings
from testing.tiny_models import WINDOW, TinyModel
from tests.container.engine.worker.test_batch import PREFIX, random_prompt

CACHE = 6 * PAGE_TOKENS
MAX_TOKENS = 40
# A few values each, at the edges of pages and of the window, so that what each gives alone is found out only once.
LENGTHS = st.sampled_from([1, WINDOW, PAGE_TOKENS - 1, PAGE_TOKENS + 1, 2 * PAGE_TOKENS, 70])
SHARED = st.sampled_from([0, 0, PAGE_TOKENS, 2 * PAGE_TOKENS])
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {},
    {"temperature": 0.9, "seed": 1},
    {"temperature": 1.4, "top_p": 0.9, "top_k": 40, "seed": 2, "logprobs": 2},
    {"repetition_penalty": 1.4, "frequency_penalty": 0.5, "stop_token_ids": tuple(range(0, 300, 9))},
    {"temperature": 0.7, "min_p": 0.02, "seed": 3, "min_new_tokens": 5, "stop_token_ids": tuple(range(0, 300, 7))},
]


class Alone:
    """Generates from a prompt in an engine of its own."""

    def __init__(self, model_dir: str) -> None:
        self._engine = Engine(model_dir)
        self._known: dict[str, list[int]] = {}

    def __call__(self, prompt: list[int], limit: int, sampling: dict[str, Any]) -> list[int]:
        key = f"{prompt} {sampling}"
        if key not in self._known:
            (self._known[key],) = self._engine.generate([prompt], max_new_tokens=MAX_TOKENS, **sampling)
        return self._known[key][:limit]


class Arrivals(RuleBasedStateMachine):
    """A batch whose loop is turned by hand, and what has come and gone."""

    def __init__(self, engine: Engine, alone: Alone, count_preemptions: Callable[[int], None]) -> None:
        super().__init__()
        self.engine, self.alone, self.count_preemptions = engine, alone, count_preemptions
        self.submitted: list[tuple[list[int], int, dict[str, Any]]] = []
        self.tokens_at_cancel: dict[int, int] = {}

    @rule(
        length=LENGTHS,
        shared=SHARED,
        limit=st.integers(1, MAX_TOKENS),
        sampling=st.sampled_from(SAMPLINGS),
        copies=st.integers(1, 2),
        newcomer=st.booleans(),
    )
    def submit(
        self, length: int, shared: int, limit: int, sampling: dict[str, Any], copies: int, newcomer: bool
    ) -> None:
        """Submit a prompt as a newcomer or not; its copies are the others of its request."""
        prompt = PREFIX[:shared] + random_prompt(length)
        minimum = min(limit, sampling.get("min_new_tokens", 0))
        limits = {"max_new_tokens": limit, "min_new_tokens": minimum}
        for copy in range(copies):
            self.engine.submit(len(self.submitted), prompt, newcomer=newcomer and not copy, **(sampling | limits))
            self.submitted.append((prompt, limit, sampling))

    @rule(which=st.integers(0, 10**6))
    def cancel(self, which: int) -> None:
        """Cancel any sequence, ended or cancelled before or not."""
        if self.submitted:
            id = which % len(self.submitted)
            self.engine.cancel(id)
            self.tokens_at_cancel.setdefault(id, len(self.engine.output.get(id, [])))

    @rule(times=st.integers(1, 12))
    def turn(self, times: int) -> None:
        for _ in range(times):
            self.engine.batch._wake_up_loop.set()  # with nothing to do it would wait for a tenth of a second
            self.engine.turn()

    @invariant()
    def what_was_cancelled_reports_nothing_more(self) -> None:
        for id, tokens in self.tokens_at_cancel.items():
            assert len(self.engine.output.get(id, [])) == tokens

    @invariant()
    def the_reports_are_possible(self) -> None:
        assert not self.engine.crashes
        for step, (running, _) in zip(self.engine.steps[-1:], self.engine.loads[-1:], strict=True):
            assert running <= self.engine.info.max_running and 0 <= step.cache_use <= 1

    def teardown(self) -> None:
        self.engine.finish(id for id in range(len(self.submitted)) if id not in self.tokens_at_cancel)
        self.engine.turn()
        self.what_was_cancelled_reports_nothing_more()
        for id, output in self.engine.output.items():
            expected = self.alone(*self.submitted[id])
            assert output == expected[: len(output)]
            assert len(output) == len(expected) or id not in self.engine.finished
        self.engine.assert_nothing_is_held()
        self.count_preemptions(self.engine.preemptions)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_random_arrivals_change_and_leave_nothing(tiny: TinyModel, family: str) -> None:
    alone, preemptions = Alone(tiny(family)), []

    def arrivals() -> Arrivals:
        engine = Engine(tiny(family), kv_cache_tokens=CACHE, max_batch_tokens=24)
        engine.batch.processor.scheduler.safety_margin = 0.0  # lets in what soon has to go again
        return Arrivals(engine, alone, preemptions.append)

    run_state_machine_as_test(arrivals, settings=fuzz_settings(10, stateful_step_count=30))
    assert any(preemptions), "a cache that holds them all would show nothing"
