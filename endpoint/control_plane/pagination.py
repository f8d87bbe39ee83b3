"""Filters, order and pages of the List operations.

A page's token says after which entry the next begins, so that what is created or deleted between two pages neither
repeats an entry nor skips one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from endpoint.aws.page_tokens import make_token, read_token
from endpoint.control_plane.validation import invalid
from endpoint.state.catalog import Endpoint, Resource

DEFAULT_PAGE_SIZE = 10
"""Rows of a page if MaxResults isn't given, as AWS documents for ListEndpoints."""

Row = Resource | Endpoint


def page(rows: Sequence[Row], parameters: dict[str, Any]) -> tuple[list[Row], str | None]:
    """Return the wanted rows in order, and the next page's token. Raises AwsError for a token that isn't ours."""
    by, order = parameters.get("SortBy", "CreationTime"), parameters.get("SortOrder", "Descending")
    key, descends = _KEYS[by], order == "Descending"
    chosen = sorted((row for row in rows if _is_wanted(row, parameters)), key=key, reverse=descends)
    if token := parameters.get("NextToken"):
        last = _last_key(token, by, order)
        chosen = [row for row in chosen if (key(row) < last if descends else key(row) > last)]
    size = parameters.get("MaxResults", DEFAULT_PAGE_SIZE)
    if len(chosen) <= size:
        return chosen, None
    return chosen[:size], make_token(by, order, *key(chosen[size - 1]))


_KEYS: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "Name": lambda row: (row.name, row.name),
    "Status": lambda row: (row.status, row.name),
    "CreationTime": lambda row: (row.created_at, row.name),
}


def _is_wanted(row: Row, parameters: dict[str, Any]) -> bool:
    # Times are rounded as they are described, so that a described time finds its row.
    created, modified = round(row.created_at, 3), round(row.modified_at, 3)
    return (
        parameters.get("NameContains", "") in row.name
        and parameters.get("CreationTimeAfter", -inf) <= created < parameters.get("CreationTimeBefore", inf)
        and parameters.get("LastModifiedTimeAfter", -inf) < modified < parameters.get("LastModifiedTimeBefore", inf)
        and ("StatusEquals" not in parameters or getattr(row, "status", None) == parameters["StatusEquals"])
    )


def _last_key(token: str, by: str, order: str) -> tuple[Any, str]:
    """Return the key of the last row of the page before. Raises AwsError."""
    value_type = float if by == "CreationTime" else str
    match read_token(token):
        case [of_by, of_order, value, str(name)] if (of_by, of_order) == (by, order) and isinstance(value, value_type):
            return value, name
    raise invalid("NextToken is not one that this operation gave for this order.")
