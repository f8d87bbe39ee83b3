"""Tells a tie from an error: the texts that the model may give an item, by `transformers` and the frozen sampling.

Another batch rounds differently, so that of two tokens whose scores are as good as equal either may come first. The
oracle generates the item anew, and where scores that differ by no more than `TIE` would change the choice, it follows
both branches. A text that no branch leads to is wrong.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from container.core import Text
from container.dialects.batch import read_line
from container.engine.sequence import Sampling
from container.engine.worker.penalties import TokenCounts
from container.engine.worker.sampler import Row, choose, gumbel, noise_key
from container.tokenization.model_defaults import ModelDefaults
from container.tokenization.preparer import Prepared, Preparer
from container.tokenization.tokenizer import Tokenizer
from testing.exactness import TIE

from .answer_line import Choice

MAX_BRANCHES = 32
"""Branches followed per row. Ties are rare: more of them than a few are errors."""
MAX_CANDIDATES = 64
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Oracle:
    """Judge of texts. It owns the reference model, which is loaded at the first question."""

    def __init__(self, model_dir: Path, max_sequence_tokens: int) -> None:
        self._model_dir = model_dir
        self._model: Any = None
        self.tokenizer = Tokenizer.load(str(model_dir), trust_remote_code=False)
        self._preparer = Preparer(
            tokenizer=self.tokenizer,
            defaults=ModelDefaults.load(str(model_dir)),
            max_sequence_tokens=max_sequence_tokens,
            default_max_new_tokens=4096,
        )

    def ids_of(self, text: str) -> list[int]:
        """Encode the text, in one of the ways it can be written in tokens."""
        return self.tokenizer.encode(Text(text=text), param="text", max_tokens=len(text) + 1).ids if text else []

    def admits(self, line: str, choice: int, got: Choice) -> bool:
        """Return whether `got` is a possible text of that choice of an item, or the beginning of one if it is cut.

        The item must have a seed or need none.
        """
        call = read_line(line.encode(), 1).call
        assert call is not None and len(call.items) == 1
        prepared = self._preparer.prepare(call.items[0], random_seed=0)
        return self._admits(prepared, prepared.samplings[choice], got)

    @torch.inference_mode()
    def _admits(self, prepared: Prepared, sampling: Sampling, got: Choice) -> bool:
        branches: list[list[int]] = [[]]
        for _ in range(MAX_BRANCHES):
            if not branches:
                return False
            output_ids = branches.pop()
            while (verdict := self._judge(output_ids, sampling, prepared.stop, got)) is None:
                first, *others = self._next(prepared.prompt_ids.tolist(), output_ids, sampling)
                branches += [[*output_ids, other] for other in others]
                output_ids.append(first)
            if verdict:
                return True
        return False

    def _judge(self, output_ids: list[int], sampling: Sampling, stop: tuple[str, ...], got: Choice) -> bool | None:
        """Judge one branch: True or False, or None if it may still become the text."""
        if not output_ids:
            return None
        text = self.tokenizer.decode(output_ids)
        settled, due = text.rstrip(_UNFINISHED), got.text.rstrip(_UNFINISHED)
        if got.is_cut and settled.startswith(due):
            return True
        early = len(self.tokenizer.decode(output_ids[: sampling.min_new_tokens]).rstrip(_UNFINISHED))
        found = (settled.find(string, max(0, early + 1 - len(string))) for string in stop)
        stops = [position for position in found if position >= 0]
        if stops and len(output_ids) > sampling.min_new_tokens:
            return (settled[: min(stops)], "stop") == (got.text, got.finish_reason)
        if output_ids[-1] in sampling.stop_token_ids:
            return (text, "stop") == (got.text, got.finish_reason)
        if len(output_ids) == sampling.max_new_tokens:
            return (text, "length") == (got.text, got.finish_reason)
        rest = settled[len(got.text) :]  # the rest may be the beginning of the stop string that ends the text
        is_stopping = settled.startswith(got.text) and any(string.startswith(rest) for string in stop)
        return None if got.text.startswith(settled) or is_stopping else False

    def _next(self, prompt_ids: list[int], output_ids: list[int], sampling: Sampling) -> list[int]:
        """Return the tokens that may come next, the most likely first."""
        if self._model is None:
            self._model = AutoModelForCausalLM.from_pretrained(
                self._model_dir, dtype=torch.float32, attn_implementation="eager"
            )
        scores = self._model(torch.tensor([prompt_ids + output_ids])).logits[:, -1].float()
        row = _row(prompt_ids, output_ids, sampling, scores)
        (first,) = choose(scores.clone(), [row]).argmax(dim=-1).tolist()
        apart = TIE * float(scores.max() - scores.min())
        candidates = [other for other in self._candidates(scores, row, apart) if other != first]
        if not candidates:
            return [first]
        shifted = scores.repeat(len(candidates), 1)
        for number, candidate in enumerate(candidates):
            shifted[number, candidate] += apart
            shifted[number, first] -= apart
        chosen = choose(shifted, [row] * len(candidates)).argmax(dim=-1).tolist()
        return [first, *(candidate for candidate, token in zip(candidates, chosen, strict=True) if token == candidate)]

    def _candidates(self, scores: torch.Tensor, row: Row, apart: float) -> list[int]:
        """Return the tokens that could win if scores changed by `apart`, and some that could not."""
        sampling = row.sampling
        sums = choose(scores.clone(), [_greedy(row)])[0].double()
        if sampling.temperature > 0:
            keys = torch.tensor([noise_key(sampling.seed, row.position)])
            sums = sums / sampling.temperature + gumbel(keys, torch.arange(len(sums))[None])[0]
            apart /= sampling.temperature
            # A threshold would miss some: tokens that top_p and the like leave out may have larger sums.
            return [int(token) for token in torch.topk(sums, MAX_CANDIDATES).indices]
        return list(itertools.islice((sums >= sums.max() - 2 * apart).nonzero().flatten().tolist(), MAX_CANDIDATES))


def _row(prompt_ids: list[int], output_ids: list[int], sampling: Sampling, scores: torch.Tensor) -> Row:
    counts = TokenCounts.of_prompt(prompt_ids, scores.shape[1], scores.device)
    counts.add(output_ids)
    penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    position = len(prompt_ids) + len(output_ids)
    return Row(sampling, position, len(output_ids), counts if penalties != (1.0, 0.0, 0.0) else None)


def _greedy(row: Row) -> Row:
    """Copy the row with temperature 0, so that its scores are changed by penalties and biases alone."""
    sampling = Sampling(
        **{name: getattr(row.sampling, name) for name in Sampling.__struct_fields__} | {"temperature": 0.0}
    )
    return Row(sampling, row.position, row.generated, row.counts)
