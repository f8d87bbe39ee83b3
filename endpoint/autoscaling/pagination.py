"""Pages of the Describe operations.

A page's token says after which entry the next begins, so that what is made or deleted between two pages neither repeats
an entry nor skips one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from endpoint.autoscaling.resources import invalid
from endpoint.aws.errors import AwsError
from endpoint.aws.page_tokens import make_token, read_token

T = TypeVar("T")


def page_size(parameters: dict[str, Any], most: int) -> int:
    """Return the number of entries of a page: MaxResults, but at most `most`. Raises AwsError."""
    size: int = parameters.get("MaxResults", most)
    if size < 0:
        raise invalid("MaxResults cannot be less than 0")
    return min(size, most)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Entries of a page, and the token of the next, if there is one."""

    rows: list[T]
    next_token: str | None


def page(rows: Sequence[T], key: Callable[[T], list[str]], parameters: dict[str, Any], most: int) -> Page[T]:
    """Return the wanted page of rows, which are in the order of their keys. Raises AwsError for a wrong token."""
    size, last = page_size(parameters, most), last_key(parameters)
    left = [row for row in rows if last is None or key(row) > last]
    shown = left[:size]
    return Page(shown, next_token(parameters, key(shown[-1]) if 0 < size < len(left) else None))


def next_token(parameters: dict[str, Any], key: list[str] | None) -> str | None:
    """Return the token of a page that begins after an entry; None without one."""
    return None if key is None else make_token(_question(parameters), key)


def last_key(parameters: dict[str, Any]) -> list[str] | None:
    """Return the key of the last entry of the page before. Raises AwsError for a token that isn't of these parameters.

    None means that this is the first page.
    """
    if (token := parameters.get("NextToken")) is None:
        return None
    match read_token(token):
        case [question, list(key)] if (
            question == _question(parameters) and key and all(isinstance(x, str) for x in key)
        ):
            return key
    raise AwsError("InvalidNextTokenException", "The NextToken value is not valid")


def _question(parameters: dict[str, Any]) -> list[Any]:
    """Return what the pages of one list have in common."""
    return sorted(
        [name, sorted(value) if isinstance(value, list) else value]
        for name, value in parameters.items()
        if name not in ("NextToken", "MaxResults")
    )
