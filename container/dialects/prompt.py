"""Prompts on the wire: texts and token ids, and lists of prompts of any kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from container.core import Prompt, Text, TokenIds
from container.dialects.wire import whole
from container.errors import InvalidRequest

MAX_TEXTS = 10_000
"""Prompts times choices of one document or line: the results are all held until the last one."""


def read_text(value: object, at: str) -> Text:
    """Read a text, the field `at`. Raises InvalidRequest."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{at} must be a string", param=at)
    if not value:
        raise InvalidRequest(f"{at} is empty; give at least one character", param=at)
    return Text(text=value)


def read_token_ids(value: object, at: str) -> TokenIds:
    """Read token ids, the field `at`. The tokenizer checks their upper bound. Raises InvalidRequest."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{at} must be a list of token ids", param=at)
    if not value:
        raise InvalidRequest(f"{at} is empty; give at least one token id", param=at)
    ids: list[Any] = list(map(whole, value)) if float in map(type, value) else value
    for index, token_id in enumerate(ids):
        if type(token_id) is not int or token_id < 0:  # a bool is an int
            raise InvalidRequest(f"{at}[{index}] must be a token id, an integer of 0 or more", param=f"{at}[{index}]")
    return TokenIds(ids=tuple(ids))


def read_each(
    value: Sequence[Any], at: str, read_prompt: Callable[[object, str], Prompt], *, n: int, n_at: str
) -> Iterator[tuple[str, Prompt]]:
    """Yield each prompt of a list with its path. Each has `n` choices, which the field `n_at` says."""
    if len(value) * n > MAX_TEXTS:
        message = f"{at} has {len(value)} prompts and {n_at} is {n}; one document has at most {MAX_TEXTS} texts in all"
        raise InvalidRequest(f"{message}, send more as JSON lines", param=at if len(value) > MAX_TEXTS else n_at)
    for index, prompt in enumerate(value):
        path = f"{at}[{index}]"
        yield path, read_prompt(prompt, path)
