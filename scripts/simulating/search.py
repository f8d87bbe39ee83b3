"""The search for the cheapest policies that keep the 95th percentile of waiting within a bound.

One choice is changed at a time, and the best change kept, until no change helps; then some pairs of changes are tried.
It starts from what AWS documents and from some random candidates, so that it isn't caught on the first hill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from .candidates import Candidate, Choices, Demand, choices_for, demand_of
from .inputs import Inputs
from .policies import understand
from .simulation import simulate
from .workload import Workload

_MAX_SWEEPS = 6
_PAIRS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Result of a candidate."""

    p95_s: float
    instance_s: float
    unanswered: int

    def rank(self, bound_s: float) -> tuple[bool, float, float]:
        """Return what sorts scores: those within the bound first, by their cost; the others by their waiting."""
        is_out = self.p95_s > bound_s or self.unanswered > 0
        return is_out, self.p95_s if is_out else self.instance_s, self.p95_s


@dataclass(slots=True)
class Search:
    """Owns the scores that are known."""

    workload: Workload
    inputs: Inputs
    max_capacity: int
    bound_s: float
    jobs: int = 2
    """Processes that simulate at once."""
    seed: int = 0
    on_score: Callable[[int], None] = lambda count: None
    """Function that is told how many candidates have been simulated."""
    scores: dict[Candidate, Score] = field(default_factory=dict)
    _choices: Choices = field(init=False)

    def __post_init__(self) -> None:
        self._choices = choices_for(self.inputs.concurrency)

    def run(self, starts: int = 2) -> tuple[Candidate, Score]:
        """Return the best candidate and its score."""
        random = np.random.default_rng(self.seed)
        drawn = [
            Candidate(**{name: values[random.integers(len(values))] for name, values in self._choices.items()})
            for _ in range(starts - 1)
        ]
        with ProcessPoolExecutor(self.jobs) as pool:
            for start in [Candidate(), *drawn]:
                self._climb(start, pool)
            while True:
                best = self._best()
                self._score([_with_two_changes(best, self._choices, random) for _ in range(_PAIRS)], pool)
                if self._best() == best:
                    return best, self.scores[best]
                self._climb(self._best(), pool)

    def _best(self) -> Candidate:
        return min(self.scores, key=lambda each: self.scores[each].rank(self.bound_s))

    def _climb(self, start: Candidate, pool: ProcessPoolExecutor) -> None:
        best = start
        self._score([best], pool)
        for _ in range(_MAX_SWEEPS):
            before = best
            for name in self._choices:
                around = [best, *best.variations(name, self._choices)]
                self._score(around, pool)
                best = min(around, key=lambda each: self.scores[each].rank(self.bound_s))
            if best == before:
                return

    def _score(self, candidates: Sequence[Candidate], pool: ProcessPoolExecutor) -> None:
        unknown = [each for each in dict.fromkeys(candidates) if each not in self.scores]
        demand = demand_of(self.workload, self.inputs.concurrency)
        score = partial(_score, self.workload, self.inputs, self.max_capacity, demand)
        for candidate, result in zip(unknown, pool.map(score, unknown), strict=True):
            self.scores[candidate] = result
            self.on_score(len(self.scores))


def _score(workload: Workload, inputs: Inputs, max_capacity: int, demand: Demand, candidate: Candidate) -> Score:
    outcome = simulate(workload, inputs, understand(candidate.document(max_capacity, demand)))
    return Score(p95_s=outcome.percentile_s(95), instance_s=outcome.instance_s, unanswered=outcome.unanswered)


def _with_two_changes(candidate: Candidate, choices: Choices, random: np.random.Generator) -> Candidate:
    for name in random.choice(list(choices), 2, replace=False):
        others = list(candidate.variations(str(name), choices))
        candidate = others[random.integers(len(others))]
    return candidate
