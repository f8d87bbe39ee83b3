"""The trials of one type: its tiny model's answers in continuous batches, compared with those of `model.generate`."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec

from container.engine.worker.refusal import ModelRefused
from surveying.death import resume_after_kill
from surveying.reference import Answer, Comparison, Reference, compare
from surveying.types import auto_class
from testing.container.hand_turned_engine import Engine
from testing.model_zoo import tiny_checkpoint, zoo_prompts

NEW_TOKENS = 24
LENGTHS = (3, 17, 41, 64, 90, 133)
"""Lengths of the prompts: around the window, the pages of the cache and the tokens of a step."""
STEP_TOKENS = 40
TIGHT_CACHES = ((8, 24, 96), (12, 60, 160))
"""Numbers of prompts, their tokens, and the tokens of a cache that can't hold all of them."""
MAX_ERROR = 1e-3
"""Largest error of a log probability, as a share of the scores' spread: it shows what no token shows. In types that are
right it is under 1e-4, in wrong ones over 0.1."""

SEEDS = (1, 2, 3, 4)
"""Seeds of weights that are tried until answers vary."""
MIN_DISTINCT = 12
"""Number of different tokens in answers that vary. Those of some types never do: there the log probabilities decide."""


class Result(msgspec.Struct, omit_defaults=True):
    """Findings on one type."""

    text_type: str = ""
    refusal: str = ""
    """The engine's reason for refusing the model."""
    unmade: str = ""
    """Why no tiny model, or no reference, could be made."""
    failure: str = ""
    """Error that a trial ended with."""
    differing: dict[str, int] = {}
    """Rows that differ, by trial."""
    ties: int = 0
    error: float = 0.0
    """Largest error of a log probability, as a share of the scores' spread."""
    distinct: int = 0
    """Different tokens in the first six answers."""
    preemptions: int = 0
    seconds: float = 0.0

    @property
    def is_equal(self) -> bool:
        fault = self.refusal or self.unmade or self.failure
        return not fault and bool(self.differing) and not any(self.differing.values()) and self.error <= MAX_ERROR


def survey(model_type: str) -> Result:
    """Make a tiny model of the type and try it in every way. Errors are part of the result."""
    result = Result()
    with tempfile.TemporaryDirectory() as directory:
        try:
            auto = auto_class(model_type)
            for seed in SEEDS:
                reference = Reference(auto, tiny_checkpoint(auto, model_type, directory, seed=seed))
                first = reference.answer(zoo_prompts(5, LENGTHS), NEW_TOKENS)
                result.distinct = len({token for answer in first for token in answer.tokens})
                if result.distinct >= MIN_DISTINCT:
                    break
        except Exception as error:
            result.unmade = _describe(error)
            return result
        result.text_type = reference.text_type
        try:
            _Trials(directory, reference, first, result).run()
        except ModelRefused as refusal:
            result.refusal = str(refusal).replace(f"{directory}: ", "")
        except Exception as error:
            result.failure = _describe(error)
    return result


class _Trials:
    def __init__(self, directory: str, reference: Reference, first: list[Answer], result: Result) -> None:
        self._directory = directory
        self._reference = reference
        self._first = first
        self._result = result

    def run(self) -> None:
        self._in_pieces_and_on_prefixes()
        self._in_a_tight_cache()
        self._resumed()
        self._killed()

    def _engine(self, *, cache_tokens: int = 2048) -> Engine:
        return Engine(
            self._directory,
            dtype="float32",
            max_batch_tokens=STEP_TOKENS,
            kv_cache_tokens=cache_tokens,
            max_model_len=512,
            unverified_models=True,
        )

    def _note(self, trial: str, found: Comparison) -> None:
        self._result.differing[trial] = self._result.differing.get(trial, 0) + found.differing
        self._result.ties += found.ties

    def _in_pieces_and_on_prefixes(self) -> None:
        """Run all prompts at once, in pieces beside decoding rows, then some that begin as those and their answers."""
        engine = self._engine()
        self._note("pieces", compare(_run(engine, self._first), self._first))
        longest = self._first[-1].prompt
        longer = [answer.prompt + answer.tokens[:5] + [6 + n] for n, answer in enumerate(self._first)]
        second = self._reference.answer([*longer, [*longest[:70], 7, 8, 9], longest], NEW_TOKENS)
        self._note("prefixes", compare(_run(engine, second), second))
        self._result.error = _error_of_logprobs(engine, [*self._first, *second])
        engine.assert_nothing_is_held()

    def _in_a_tight_cache(self) -> None:
        """Run more than the cache holds, until sequences are preempted: with windows it takes longer ones."""
        for prompts, tokens, cache_tokens in TIGHT_CACHES:
            expected = self._reference.answer(zoo_prompts(7, (tokens,) * prompts), NEW_TOKENS)
            engine = self._engine(cache_tokens=cache_tokens)
            self._note("tight", compare(_run(engine, expected), expected))
            self._result.preemptions += engine.preemptions
            if engine.preemptions:
                return

    def _resumed(self) -> None:
        """Go on behind the reference's first half in a batch that has seen nothing of it."""
        engine, half = self._engine(), NEW_TOKENS // 2
        for id, answer in enumerate(self._first):
            engine.submit(id, answer.prompt, output_ids=answer.tokens[:half], max_new_tokens=NEW_TOKENS)
        ends = engine.finish(range(len(self._first)))
        found = [answer.tokens[:half] + end for answer, end in zip(self._first, ends, strict=True)]
        self._note("resumed", compare(found, self._first))

    def _killed(self) -> None:
        prompts = [answer.prompt for answer in self._first]
        with tempfile.TemporaryDirectory() as journal:
            found = resume_after_kill(self._engine, prompts, NEW_TOKENS, journal)
        self._note("killed", compare(found, self._first))


def _run(engine: Engine, expected: Sequence[Answer]) -> list[list[int]]:
    return engine.generate([answer.prompt for answer in expected], max_new_tokens=NEW_TOKENS, logprobs=3)


def _error_of_logprobs(engine: Engine, expected: Sequence[Answer]) -> float:
    """Return the largest error of a reported log probability, up to where a row leaves the reference."""
    worst, places = 0.0, [0] * len(expected)
    left: set[int] = set()
    for new in (new for step in engine.steps for new in step.tokens):
        place, answer = places[new.id], expected[new.id]
        if new.id in left or place == len(answer.tokens):
            continue
        due = answer.scores[place].log_softmax(0)
        spread = answer.spread(place)
        for token, logprob in new.logprobs[0].top:
            worst = max(worst, abs(float(due[token]) - logprob) / spread)
        if new.token_ids[0] != answer.tokens[place]:
            left.add(new.id)
        places[new.id] += 1
    return worst


def _describe(error: Exception) -> str:
    """Describe an error in a line, with the place outside of torch at which it was raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    place = f" @ {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"
