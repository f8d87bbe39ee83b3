"""Tells a tie from an error: the texts that the model may give an item, by `transformers` and the frozen sampling.

Another batch rounds otherwise, so that of two tokens whose scores are as good as equal either may come first. The
oracle generates the item anew, and wherever scores that differ by no more than `TIE` would change the choice, it goes
both ways. A text that no way leads to is wrong.
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
from container.tokenization.model_defaults import Defaults
from container.tokenization.preparer import Prepared, Preparer
from container.tokenization.tokenizer import Tokenizer
from testing.exactness import TIE

from .answer_line import Choice

MOST_WAYS = 32
"""Ties are rare: more than a few in one row are no ties."""
MOST_RIVALS = 64
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Oracle:
    """Owns the reference model, loaded when it is first asked."""

    def __init__(self, model_dir: Path, max_sequence_tokens: int) -> None:
        self._model_dir = model_dir
        self._model: Any = None
        self.tokenizer = Tokenizer.load(str(model_dir), trust_remote_code=False)
        self._preparer = Preparer(
            tokenizer=self.tokenizer,
            defaults=Defaults.load(str(model_dir)),
            max_sequence_tokens=max_sequence_tokens,
            default_max_new_tokens=4096,
        )

    def ids_of(self, text: str) -> list[int]:
        """One way of writing the text in tokens."""
        return self.tokenizer.encode(Text(text=text), param="text", max_tokens=len(text) + 1).ids if text else []

    def admits(self, line: str, choice: int, got: Choice) -> bool:
        """Whether `got` is a text of that choice of an item's, or where it is cut, the beginning of one.

        The item has a seed or needs none.
        """
        call = read_line(line.encode(), 1).call
        assert call is not None and len(call.items) == 1
        prepared = self._preparer.prepare(call.items[0], drawn_seed=0)
        return self._admits(prepared, prepared.samplings[choice], got)

    @torch.inference_mode()
    def _admits(self, prepared: Prepared, sampling: Sampling, got: Choice) -> bool:
        ways: list[list[int]] = [[]]
        for _ in range(MOST_WAYS):
            if not ways:
                return False
            output_ids = ways.pop()
            while (verdict := self._judge(output_ids, sampling, prepared.stop, got)) is None:
                first, *others = self._next(prepared.prompt_ids.tolist(), output_ids, sampling)
                ways += [[*output_ids, other] for other in others]
                output_ids.append(first)
            if verdict:
                return True
        return False

    def _judge(self, output_ids: list[int], sampling: Sampling, stop: tuple[str, ...], got: Choice) -> bool | None:
        """Of what one way has so far. None: it may yet become the text."""
        if not output_ids:
            return None
        text = self.tokenizer.decode(output_ids)
        settled, due = text.rstrip(_UNFINISHED), got.text.rstrip(_UNFINISHED)
        if got.is_cut and settled.startswith(due):
            return True
        early = len(self.tokenizer.decode(output_ids[: sampling.min_new_tokens]).rstrip(_UNFINISHED))
        ways = (settled.find(string, max(0, early + 1 - len(string))) for string in stop)
        places = [place for place in ways if place >= 0]
        if places and len(output_ids) > sampling.min_new_tokens:
            return (settled[: min(places)], "stop") == (got.text, got.finish_reason)
        if output_ids[-1] in sampling.stop_token_ids:
            return (text, "stop") == (got.text, got.finish_reason)
        if len(output_ids) == sampling.max_new_tokens:
            return (text, "length") == (got.text, got.finish_reason)
        rest = settled[len(got.text) :]  # may be the beginning of the stop string that will end the text
        is_stopping = settled.startswith(got.text) and any(string.startswith(rest) for string in stop)
        return None if got.text.startswith(settled) or is_stopping else False

    def _next(self, prompt_ids: list[int], output_ids: list[int], sampling: Sampling) -> list[int]:
        """The tokens that may come next, the likeliest first."""
        if self._model is None:
            self._model = AutoModelForCausalLM.from_pretrained(
                self._model_dir, dtype=torch.float32, attn_implementation="eager"
            )
        scores = self._model(torch.tensor([prompt_ids + output_ids])).logits[:, -1].float()
        row = _row(prompt_ids, output_ids, sampling, scores)
        (first,) = choose(scores.clone(), [row]).argmax(dim=-1).tolist()
        apart = TIE * float(scores.max() - scores.min())
        rivals = [other for other in self._rivals(scores, row, apart) if other != first]
        if not rivals:
            return [first]
        shifted = scores.repeat(len(rivals), 1)
        for number, rival in enumerate(rivals):
            shifted[number, rival] += apart
            shifted[number, first] -= apart
        chosen = choose(shifted, [row] * len(rivals)).argmax(dim=-1).tolist()
        return [first, *(rival for rival, token in zip(rivals, chosen, strict=True) if token == rival)]

    def _rivals(self, scores: torch.Tensor, row: Row, apart: float) -> list[int]:
        """The tokens that could win if scores moved so far, and some that could not."""
        sampling = row.sampling
        sums = choose(scores.clone(), [_greedy(row)])[0].double()
        if sampling.temperature > 0:
            keys = torch.tensor([noise_key(sampling.seed, row.position)])
            sums = sums / sampling.temperature + gumbel(keys, torch.arange(len(sums))[None])[0]
            apart /= sampling.temperature
            # Tokens that top_p and its like leave out may have larger sums.
            return [int(each) for each in torch.topk(sums, MOST_RIVALS).indices]
        return list(itertools.islice((sums >= sums.max() - 2 * apart).nonzero().flatten().tolist(), MOST_RIVALS))


def _row(prompt_ids: list[int], output_ids: list[int], sampling: Sampling, scores: torch.Tensor) -> Row:
    counts = TokenCounts.of_prompt(prompt_ids, scores.shape[1], scores.device)
    counts.add(output_ids)
    penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    position = len(prompt_ids) + len(output_ids)
    return Row(sampling, position, len(output_ids), counts if penalties != (1.0, 0.0, 0.0) else None)


def _greedy(row: Row) -> Row:
    """Its scores changed by penalties and the like, nothing drawn."""
    sampling = Sampling(
        **{name: getattr(row.sampling, name) for name in Sampling.__struct_fields__} | {"temperature": 0.0}
    )
    return Row(sampling, row.position, row.generated, row.counts)
