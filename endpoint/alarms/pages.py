"""Pages of the Describe operations. A token says after what the next page begins. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from endpoint.aws import page_tokens
from endpoint.aws.errors import AwsError

T = TypeVar("T")


def read_token(token: str, *types: type) -> tuple[Any, ...]:
    """Return what a token was made of, if that has these types. Raises AwsError for one that isn't ours."""
    values = page_tokens.read_token(token)
    if values is None or [type(value) for value in values] != list(types):
        raise AwsError("InvalidNextToken", f"Invalid NextToken : {token}")
    return tuple(values)


def cut(rows: Sequence[T], size: int, after: Callable[[T], str]) -> tuple[Sequence[T], str | None]:
    """Return the first `size` rows, and the token of those behind them, made by `after` of the last one shown."""
    return (rows, None) if len(rows) <= size else (rows[:size], after(rows[size - 1]))
