"""The trial of one model type: a tiny random model of it in our batch, against `generate`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from container.engine.worker import packed_linear
from container.engine.worker.refusal import ModelRefused
from surveying.killed import generate_until_killed
from surveying.reference import Comparison, ReferenceModel
from testing.container.hand_turned_engine import Engine
from testing.model_recipes import VOCABULARY
from testing.model_zoo import WRAPPER_TYPES, tiny_checkpoint, zoo_prompts

STEP_TOKENS = 40
"""Tokens of a step: long prompts come in pieces beside sequences that decode."""
TIGHT_TOKENS = 96
"""Tokens of a cache that has room for one sequence or two."""
WIDE_TIGHT = (12, 60, 160)
"""Prompts, their tokens and a cache's tokens where the one above preempts nothing: layers with a window need more."""
SEEDS = (1, 2, 3, 4)
"""Seeds of weights, tried until the answers vary."""
MIN_DISTINCT = 12
"""Number of different tokens in answers that vary. Those of some types never do: their scores decide."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths of the prompts and of the answers."""

    lengths: tuple[int, ...]
    new_tokens: int
    tight: int
    """Number of sequences in the tight cache."""


WHOLE = Size(lengths=(3, 17, 41, 64, 90, 133), new_tokens=24, tight=6)
LEAN = Size(lengths=(3, 41, 90), new_tokens=12, tight=4)


class Result(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The outcome of a trial."""

    model_type: str
    text_type: str = ""
    stage: str = "build"
    """Part that was under way when it ended: build, generate, load, batch, or done."""
    refusal: str = ""
    """Reason that the engine gave."""
    failure: str = ""
    """Other errors."""
    differing: dict[str, int] = {}
    """Answers that differ, by check."""
    error: float = 0.0
    """Largest difference of a log probability, as a share of the spread."""
    ties: int = 0
    preemptions: int = 0
    distinct: int = 0
    """Different tokens in all answers of the reference."""

    @property
    def is_equal(self) -> bool:
        return self.stage == "done" and not (self.refusal or self.failure or self.differing)


def try_model(model_type: str, size: Size) -> Result:
    """Make a tiny model of this type and run all checks. Errors are part of the result."""
    result = Result(model_type=model_type)
    with tempfile.TemporaryDirectory() as directory:
        try:
            _Trial(result, size, Path(directory)).run()
        except ModelRefused as refusal:
            result.refusal = " ".join(str(refusal).split()).replace(f"{directory}/model: ", "").replace(directory, "")
        except Exception as error:
            result.failure = f"{type(error).__name__}: {' '.join(str(error).split())}".replace(directory, "")[:300]
    return result


class _Trial:
    def __init__(self, result: Result, size: Size, directory: Path) -> None:
        self._result, self._size, self._directory = result, size, directory
        self._model_dir = str(directory / "model")
        self._comparison = Comparison()
        self._expected: ReferenceModel

    def run(self) -> None:
        result, size = self._result, self._size
        auto: Any = AutoModelForImageTextToText if result.model_type in WRAPPER_TYPES else AutoModelForCausalLM
        prompts = zoo_prompts(5, size.lengths)
        for seed in SEEDS:
            result.stage = "build"
            tiny_checkpoint(auto, result.model_type, self._model_dir, seed=seed)
            result.stage = "generate"
            self._expected = ReferenceModel(auto, self._model_dir)
            answers = [self._expected.answer(prompt, size.new_tokens).token_ids for prompt in prompts]
            result.distinct = len({token for answer in answers for token in answer})
            if result.distinct >= MIN_DISTINCT:
                break
        result.text_type = self._expected.text_type
        result.stage = "load"
        engine = self._engine()
        result.stage = "batch"
        for prompt in prompts[: 1 + len(prompts) // 3]:
            self._check("alone", engine, [prompt])
        self._check("batch", engine, prompts)
        self._check("prefix", engine, _second_round(prompts, answers))
        self._check_preemption()
        self._check_resumption(engine, prompts)
        result.ties, result.error = self._comparison.ties, self._comparison.error
        result.differing = self._comparison.differing
        result.stage = "done"

    def _engine(self, *, is_packed: bool = True, **settings: Any) -> Engine:
        defaults: dict[str, Any] = {"max_model_len": 512, "max_batch_tokens": STEP_TOKENS, "dtype": "float32"}
        with mock.patch.object(packed_linear, "can_pack", packed_linear.can_pack if is_packed else _cannot_pack):
            return Engine(self._model_dir, unverified_models=True, **(defaults | settings))

    def _check(
        self, check: str, engine: Engine, prompts: Sequence[list[int]], behind: Sequence[list[int]] | None = None
    ) -> None:
        """Compare the answers to prompts in one batch. They go on `behind` what was generated before."""
        parts = behind or [[] for _ in prompts]
        ids = self._submit(engine, prompts, parts)
        engine.settle(ids)
        for id, prompt, part in zip(ids, prompts, parts, strict=True):
            if id in engine.failed:
                raise RuntimeError(engine.failed[id])
            reported = [new for step in engine.steps for new in step.tokens if new.id == id]
            logprobs = [logprob for new in reported for logprob in new.logprobs]
            expected = self._expected.answer(prompt, self._size.new_tokens)
            self._comparison.add(check, expected, [*part, *engine.output.get(id, [])], logprobs)

    def _submit(self, engine: Engine, prompts: Sequence[list[int]], parts: Sequence[list[int]]) -> range:
        first = 1 + max((*engine.output, *engine.failed), default=-1)
        for id, (prompt, part) in enumerate(zip(prompts, parts, strict=True), first):
            engine.submit(id, prompt, output_ids=part, max_new_tokens=self._size.new_tokens, logprobs=VOCABULARY)
        return range(first, first + len(prompts))

    def _check_preemption(self) -> None:
        engine = self._engine(kv_cache_tokens=TIGHT_TOKENS)
        self._check("preemption", engine, zoo_prompts(7, (26,) * self._size.tight))
        if not engine.preemptions and self._size == WHOLE:
            sequences, length, tokens = WIDE_TIGHT
            engine = self._engine(kv_cache_tokens=tokens)
            self._check("preemption", engine, zoo_prompts(7, (length,) * sequences))
        self._result.preemptions = engine.preemptions

    def _check_resumption(self, engine: Engine, prompts: Sequence[list[int]]) -> None:
        """Check plain linear layers, and answers that go on: behind their halves, and after a kill."""
        half = self._size.new_tokens // 2
        plain = self._engine(is_packed=False)
        self._check("plain linears", plain, prompts)
        again = self._engine()
        halves = [self._expected.answer(prompt, self._size.new_tokens).token_ids[:half] for prompt in prompts]
        self._check("resumed", again, prompts, halves)
        kept = generate_until_killed(
            engine,
            lambda: self._submit(engine, prompts, [[] for _ in prompts]),
            tokens=half * len(prompts),
            directory=str(self._directory / "journal"),
        )
        kept += [[] for _ in range(len(prompts) - len(kept))]
        if sum(map(len, kept)) < half * len(prompts):
            raise RuntimeError("the journal lost tokens of the killed process")
        open_ones = [number for number, part in enumerate(kept) if len(part) < self._size.new_tokens]
        self._check("killed", again, [prompts[number] for number in open_ones], [kept[number] for number in open_ones])


def _cannot_pack(*_: Any) -> bool:
    return False


def _second_round(prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[list[int]]:
    """Return prompts that begin as the first round's, and go on as the answers or otherwise."""
    longer = [prompt + answer[:5] + [6 + n] for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))]
    return [*longer, [*prompts[-1][:70], 7, 8, 9], prompts[-1]]
