"""Batches of JSON lines, drawn from a name: every dialect, greedy and seeded, with a long tail of lengths."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

JSON_LINES = "application/jsonlines"
WORDS = (
    *("sea", "sky", "river", "stone", "winter", "letter", "garden", "engine", "paper", "window", "morning", "music"),
    *("under", "over", "before", "after", "quiet", "green", "seven", "count", "carry", "answer", "listen", "begin"),
    *("open", "slow", "the", "and", "of", "with", "to", "in", "a", "is", "was", "every", "other", "never"),
)
MIN_TOKENS = 16
_TAIL = 1.2
"""Exponent of the Pareto distribution."""
_STOPS = ("th", "er", "an", "in", "on", "re", "st", "es", "\n", "e", "a")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Size of a batch. One item has `longest` tokens, most have few."""

    items: int = 64
    typical: int = 24
    longest: int = 240


@dataclass(frozen=True, slots=True)
class Batch:
    """A request body. Equal batches are the same request; drawing with the same `name` gives an equal batch."""

    name: str
    lines: tuple[str, ...]

    @property
    def body(self) -> bytes:
        return "".join(f"{line}\n" for line in self.lines).encode()


def draw_batch(name: str, shape: Shape) -> Batch:
    draw = random.Random(f"{name} {shape}")
    lengths = [_length(draw, shape) for _ in range(shape.items)]
    lengths[draw.randrange(shape.items)] = shape.longest
    return Batch(name, tuple(json.dumps(_item(draw, number, length)) for number, length in enumerate(lengths)))


def draw_unseeded_batch(name: str, tokens: int) -> Batch:
    """Make a batch of one item whose seed the server chooses."""
    draw = random.Random(name)
    return Batch(name, (json.dumps({"prompt": _prompt(draw), "max_tokens": tokens, "ignore_eos": True}),))


def replace_line(batch: Batch, line_number: int, document: object) -> Batch:
    """Copy the batch with another document in one line."""
    lines = list(batch.lines)
    lines[line_number] = json.dumps(document)
    return Batch(f"{batch.name} with another line {line_number}", tuple(lines))


def _length(draw: random.Random, shape: Shape) -> int:
    return max(MIN_TOKENS, min(shape.longest, int(shape.typical * draw.paretovariate(_TAIL))))


def _prompt(draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.choice([4, 8, 8, 16, 16, 60])))


def _item(draw: random.Random, number: int, tokens: int) -> Any:
    kind = draw.choice(["completion", "completion", "inputs", "chat", "batch", "bedrock"])
    if kind == "inputs":
        return _inputs(draw, tokens)
    document = _openai(draw, tokens, is_chat=kind == "chat")
    if kind in ("chat", "batch"):
        url = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
        return {"custom_id": f"item-{number}", "method": "POST", "url": url, "body": document}
    if kind == "bedrock":
        return {"recordId": f"record-{number}", "modelInput": document}
    return document


def _openai(draw: random.Random, tokens: int, *, is_chat: bool) -> dict[str, Any]:
    prompt = _prompt(draw)
    document: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}
    document |= {"max_tokens": tokens, "ignore_eos": True}
    if draw.random() < 0.5:
        document["temperature"] = 0
    else:
        document |= {"temperature": draw.uniform(0.4, 1.2), "seed": draw.getrandbits(32)}
        document |= draw.choice([{}, {}, {"top_p": 0.9}, {"top_k": 50}, {"n": 2}, {"n": 2}])
    if draw.random() < 0.2:
        document |= {"stop": draw.sample(_STOPS, 2), "min_tokens": MIN_TOKENS}
    if draw.random() < 0.2:
        document |= {"logprobs": True, "top_logprobs": 2} if is_chat else {"logprobs": draw.randint(0, 3)}
    if draw.random() < 0.2:
        document |= {"presence_penalty": 0.4, "repetition_penalty": 1.1}
    return document


def _inputs(draw: random.Random, tokens: int) -> dict[str, Any]:
    parameters: dict[str, Any] = {"max_new_tokens": tokens, "ignore_eos": True, "details": True}
    if draw.random() < 0.5:
        parameters |= {"temperature": draw.uniform(0.4, 1.2), "do_sample": True, "seed": draw.getrandbits(32)}
        if draw.random() < 0.3:
            parameters["num_return_sequences"] = 2
    if draw.random() < 0.2:
        parameters |= {"stop": draw.sample(_STOPS, 2), "min_new_tokens": MIN_TOKENS}
    if draw.random() < 0.2:
        parameters["logprobs"] = 1
    return {"inputs": _prompt(draw), "parameters": parameters}
