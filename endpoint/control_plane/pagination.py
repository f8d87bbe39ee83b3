"""What the List operations have in common: filters, order and pages.

A page's token says after which entry the next begins, so that what is created or deleted between two pages neither
repeats an entry nor skips one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, TypeVar

from endpoint.aws.service import AwsError
from endpoint.state.catalog import Endpoint, Resource

DEFAULT_PAGE = 10
"""AWS documents it for ListEndpoints."""

Row = TypeVar("Row", Resource, Endpoint)


def page(rows: Sequence[Row], parameters: dict[str, Any]) -> tuple[list[Row], str | None]:
    """Those wanted, in order, and the token of the next page. Raises AwsError for a token that isn't ours."""
    by, order = parameters.get("SortBy", "CreationTime"), parameters.get("SortOrder", "Descending")
    key, descends = _KEYS[by], order == "Descending"
    chosen = sorted((row for row in rows if _is_wanted(row, parameters)), key=key, reverse=descends)
    if token := parameters.get("NextToken"):
        last = _read_token(token, by, order)
        chosen = [row for row in chosen if (key(row) < last if descends else key(row) > last)]
    size = parameters.get("MaxResults", DEFAULT_PAGE)
    return chosen[:size], _token(by, order, key(chosen[size - 1])) if len(chosen) > size else None


_KEYS: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "Name": lambda row: (row.name, row.name),
    "Status": lambda row: (row.status, row.name),
    "CreationTime": lambda row: (row.created_at, row.name),
}


def _is_wanted(row: Resource | Endpoint, parameters: dict[str, Any]) -> bool:
    """Times are rounded as they are described, so that a described time finds its row."""
    created, modified = round(row.created_at, 3), round(row.modified_at, 3)
    return (
        parameters.get("NameContains", "") in row.name
        and parameters.get("CreationTimeAfter", -inf) <= created < parameters.get("CreationTimeBefore", inf)
        and parameters.get("LastModifiedTimeAfter", -inf) < modified < parameters.get("LastModifiedTimeBefore", inf)
        and ("StatusEquals" not in parameters or getattr(row, "status", None) == parameters["StatusEquals"])
    )


def _token(by: str, order: str, last: tuple[Any, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps([by, order, *last]).encode()).decode()


def _read_token(token: str, by: str, order: str) -> tuple[Any, str]:
    try:
        of_by, of_order, value, name = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, TypeError, RecursionError):
        of_by = of_order = value = name = None
    value_type = float if by == "CreationTime" else str
    if (of_by, of_order) != (by, order) or not isinstance(value, value_type) or not isinstance(name, str):
        raise AwsError("ValidationException", "NextToken is not one that this operation gave for this order.")
    return value, name
