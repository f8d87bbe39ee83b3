"""Random values of botocore's shapes, for Hypothesis."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

HEADER_TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
XML_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn", "Cc"]) | st.sampled_from("\t\r\n<>&'\""), max_size=10)
"""Text that XML can hold."""


def values_of(
    shape: Any, text: st.SearchStrategy[str] = ANY_TEXT, *, has_empty_collections: bool = True
) -> st.SearchStrategy[Any]:
    """Return a strategy for values as boto3's callers give them.

    Without `has_empty_collections`, structures and maps are never empty: clients of the query protocol drop such ones.
    """

    def inner(part: Any) -> st.SearchStrategy[Any]:
        return values_of(part, text, has_empty_collections=has_empty_collections)

    least = 0 if has_empty_collections else 1
    match shape.type_name:
        case "structure":
            members = {
                name: inner(member)
                for name, member in shape.members.items()
                if has_empty_collections or member.type_name != "structure" or member.members
            }
            if shape.is_tagged_union:
                return st.one_of([st.fixed_dictionaries({name: values}) for name, values in members.items()])
            required = {name: values for name, values in members.items() if name in shape.required_members}
            optional = {name: values for name, values in members.items() if name not in required}
            values = st.fixed_dictionaries(required, optional=optional)
            return values if has_empty_collections or not members else values.filter(bool)
        case "list":
            return st.lists(inner(shape.member), max_size=2)
        case "map":
            return st.dictionaries(inner(shape.key), inner(shape.value), min_size=least, max_size=2)
        case "string" if shape.serialization.get("location") == "uri":
            return HEADER_TEXT.filter(lambda text: text.strip("."))  # clients resolve dots in paths
        case "string" if shape.serialization.get("location"):
            return HEADER_TEXT
        case "string":
            return text
        case "blob":
            return st.binary(min_size=1, max_size=20)
    return _numbers_of(shape)


def _numbers_of(shape: Any) -> st.SearchStrategy[Any]:
    match shape.type_name:
        case "integer":
            return st.integers(-(2**31), 2**31 - 1)
        case "long":
            return st.integers(-(2**63), 2**63 - 1)
        case "float":
            return st.floats(allow_nan=False, allow_infinity=False, width=32)
        case "double":
            return st.floats(-(2.0**360), 2.0**360)
        case "boolean":
            return st.booleans()
        case "timestamp":
            return st.integers(0, 2**32).map(lambda ms: datetime.fromtimestamp(ms / 1000, UTC))
    raise AssertionError(shape.type_name)


def with_epochs(value: Any) -> Any:
    """Return a value with its times as seconds since the epoch."""
    if isinstance(value, dict):
        return {name: with_epochs(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [with_epochs(inner) for inner in value]
    return value.timestamp() if isinstance(value, datetime) else value
