"""Filters, order and pages of the List operations.

A page's token says after which entry the next begins, so that what is created or deleted between two pages neither
repeats an entry nor skips one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

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
        last = _read_token(token, by, order)
        chosen = [row for row in chosen if (key(row) < last if descends else key(row) > last)]
    size = parameters.get("MaxResults", DEFAULT_PAGE_SIZE)
    if len(chosen) <= size:
        return chosen, None
    return chosen[:size], base64.urlsafe_b64encode(json.dumps([by, order, *key(chosen[size - 1])]).encode()).decode()


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


def _read_token(token: str, by: str, order: str) -> tuple[Any, str]:
    try:
        of_by, of_order, value, name = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, TypeError, RecursionError):
        of_by = of_order = value = name = None
    value_type = float if by == "CreationTime" else str
    if (of_by, of_order) != (by, order) or not isinstance(value, value_type) or not isinstance(name, str):
        raise invalid("NextToken is not one that this operation gave for this order.")
    return value, name
