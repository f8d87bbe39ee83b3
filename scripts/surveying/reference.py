"""Answers of `model.generate`, greedy and each prompt alone, and what differs from them beyond a tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from testing.exactness import TIE


@dataclass(frozen=True, slots=True)
class Answer:
    prompt: list[int]
    tokens: list[int]
    scores: torch.Tensor
    """Scores of all tokens at each position of the answer [N, V], float32."""

    def spread(self, position: int) -> float:
        """Return the distance between a position's largest and smallest score."""
        row = self.scores[position]
        possible = row[torch.isfinite(row)]
        return float(possible.max() - possible.min())


@dataclass(frozen=True, slots=True)
class Comparison:
    rows: int
    differing: int
    """Rows that leave the reference at a place that is no tie, or end elsewhere."""
    ties: int


class Reference:
    """The library's model with its own eager attention, in float32."""

    def __init__(self, auto: Any, directory: str) -> None:
        self._model = auto.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
        self._model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        self._model.train(False)

    @property
    def text_type(self) -> str:
        text_type: str = self._model.config.get_text_config().model_type
        return text_type

    def answer(self, prompts: Sequence[list[int]], new_tokens: int) -> list[Answer]:
        return [self._answer(prompt, new_tokens) for prompt in prompts]

    def _answer(self, prompt: list[int], new_tokens: int) -> Answer:
        inputs = torch.tensor([prompt])
        found = self._model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        scores = torch.stack([row[0] for row in found.logits]).float()
        return Answer(prompt, found.sequences[0, len(prompt) :].tolist(), scores)


def compare(found: Sequence[list[int]], expected: Sequence[Answer]) -> Comparison:
    """Compare answers with the reference's."""
    ties = differing = 0
    for tokens, answer in zip(found, expected, strict=True):
        if tokens == answer.tokens:
            continue
        if _leaves_at_tie(tokens, answer):
            ties += 1
        else:
            differing += 1
    return Comparison(len(expected), differing, ties)


def _leaves_at_tie(tokens: list[int], answer: Answer) -> bool:
    pairs = enumerate(zip(tokens, answer.tokens, strict=False))
    place = next((position for position, (mine, due) in pairs if mine != due), None)
    if place is None:
        return False  # one is longer
    row = answer.scores[place]
    return float((row[answer.tokens[place]] - row[tokens[place]]).abs()) <= TIE * answer.spread(place)
