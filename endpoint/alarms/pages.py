"""Pages of the Describe operations. A token says after what the next page begins. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from endpoint.aws.errors import AwsError

T = TypeVar("T")


def make_token(*after: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(after).encode()).decode()


def read_token(token: str, *types: type) -> tuple[Any, ...]:
    """Return what a token was made of, if that has these types. Raises AwsError for one that isn't ours."""
    try:
        values = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or [type(value) for value in values] != list(types):
        raise AwsError("InvalidNextToken", f"Invalid NextToken : {token}")
    return tuple(values)


def cut(rows: Sequence[T], size: int, after: Callable[[T], str]) -> tuple[Sequence[T], str | None]:
    """Return the first `size` rows, and the token of those behind them, made by `after` of the last one shown."""
    return (rows, None) if len(rows) <= size else (rows[:size], after(rows[size - 1]))
