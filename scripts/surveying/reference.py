"""`model.generate` as the measure of the batch: greedy, eager attention, float32, each prompt alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from container.engine.sequence import TokenLogprobs
from testing.exactness import TIE
from testing.model_recipes import VOCABULARY

MAX_ERROR = 1e-3
"""Largest difference of a log probability, as a share of its position's spread. Right models are 20 times below."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens of `generate` for one prompt, and the log probabilities [tokens, V] they were chosen by."""

    token_ids: list[int]
    logprobs: torch.Tensor


class ReferenceModel:
    """Answers prompts one at a time, each once."""

    def __init__(self, auto: Any, directory: str) -> None:
        self._model = auto.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
        self._known: dict[tuple[int, ...], Answer] = {}
        self._model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]

    @property
    def text_type(self) -> str:
        return str(self._model.config.get_text_config().model_type)

    def answer(self, prompt: Sequence[int], new_tokens: int) -> Answer:
        key = (*prompt, -new_tokens)
        if key not in self._known:
            self._known[key] = self._generate(prompt, new_tokens)
        return self._known[key]

    def _generate(self, prompt: Sequence[int], new_tokens: int) -> Answer:
        ids = torch.tensor([list(prompt)])
        greedy = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=new_tokens, do_sample=False, num_beams=1, eos_token_id=None, pad_token_id=0
        )
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=greedy,
            output_logits=True,
            return_dict_in_generate=True,
        )
        scores = torch.stack([row[0] for row in out.logits]).float()
        return Answer(out.sequences[0, len(prompt) :].tolist(), torch.log_softmax(scores, dim=-1))


@dataclass(slots=True)
class Comparison:
    """Counts what differs from the reference."""

    ties: int = 0
    error: float = 0.0
    """Largest difference of a log probability so far, as a share of the spread."""
    differing: dict[str, int] = field(default_factory=dict)
    """Number of answers that differ, by the check that showed it."""

    def add(self, check: str, expected: Answer, token_ids: list[int], logprobs: Sequence[TokenLogprobs]) -> None:
        """Compare an answer, or its last part, as far as its tokens are the expected ones.

        `logprobs` has one for each of the last tokens, all of the vocabulary.
        """
        pairs = zip(token_ids, expected.token_ids, strict=False)
        equal = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        first = len(token_ids) - len(logprobs)
        worst = 0.0
        for number in range(first, min(equal + 1, len(token_ids), len(expected.token_ids))):
            worst = max(worst, _distance(logprobs[number - first], expected.logprobs[number]))
        self.error = max(self.error, worst)
        if len(token_ids) == len(expected.token_ids) and equal < len(token_ids):
            row = expected.logprobs[equal]
            apart = row[expected.token_ids[equal]] - row[token_ids[equal]]
            if float(apart) <= TIE * _spread(row) and worst < MAX_ERROR:
                self.ties += 1
                return
        if token_ids != expected.token_ids or not worst < MAX_ERROR:
            self.differing[check] = self.differing.get(check, 0) + 1


def _distance(found: TokenLogprobs, expected: torch.Tensor) -> float:
    ids = torch.tensor([id for id, _ in found.top])
    values = torch.tensor([value for _, value in found.top])
    if len(ids) < min(VOCABULARY, len(expected)):
        return float("inf")
    return float((values - expected[ids]).abs().max()) / _spread(expected)


def _spread(row: torch.Tensor) -> float:
    possible = row[torch.isfinite(row)]
    return float(possible.max() - possible.min())
