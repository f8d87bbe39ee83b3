"""Values of a service's shapes: read from JSON or CBOR with their types checked, and written back.

A shape is a botocore.model.Shape. Locations of members, constraints and requests are for the modules beside this one.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_LIMITS = {"integer": 2**31, "long": 2**63}


class Unreadable(ValueError):
    """A value has another type than its shape."""


class UnknownParameter(Unreadable):
    """The model has no such member. AWS ignores these; here one may be newer than the model, so it isn't dropped."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """A time as CBOR has it: tagged, so that it is no number."""

    seconds: float


def read_value(shape: Any, value: Any, path: str = "") -> Any:
    """Return a value of JSON or CBOR as `shape` has it: times as seconds since the epoch, blobs as bytes.

    Raises Unreadable. Nulls in structures are dropped, as AWS does. `path` is where the value is in the request.
    """
    match shape.type_name:
        case "structure":
            names = {member.serialization.get("name", name): name for name, member in shape.members.items()}
            result = {}
            for wire_name, inner in _expect(value, dict, "structure").items():
                if wire_name not in names:
                    raise UnknownParameter(f'Unknown parameter "{wire_name}"{f" in {path}" if path else ""}')
                if inner is not None:
                    name = names[wire_name]
                    result[name] = read_value(shape.members[name], inner, f"{path}.{name}" if path else name)
            return result
        case "list":
            members = _expect(value, list, "list")
            return [None if inner is None else read_value(shape.member, inner, path) for inner in members]
        case "map":
            return {
                read_value(shape.key, key, path): None if inner is None else read_value(shape.value, inner, path)
                for key, inner in _expect(value, dict, "map").items()
            }
        case "string":
            return _read_string(value)
        case "boolean":
            return _expect(value, bool, "Boolean")
        case "integer" | "long" | "float" | "double" | "timestamp":
            is_time = shape.type_name == "timestamp" and isinstance(value, Epoch)
            return _read_number(shape, value.seconds if is_time else value)
        case "blob" if isinstance(value, bytes):
            return value
        case "blob":
            text = _read_string(value)
            try:
                return base64.b64decode(text, validate=True)
            except ValueError:
                raise Unreadable("STRING_VALUE can not be converted to Blob: not base64") from None
    raise NotImplementedError(shape.type_name)


def read_text(shape: Any, text: str) -> Any:
    """Return the value of `shape` in a header or a path. Raises Unreadable."""
    if shape.type_name == "string":
        return text
    limit = _LIMITS[shape.type_name]  # no service here has other types there
    try:
        value = int(text) if text.isascii() and len(text) < 20 else limit
    except ValueError:
        value = limit
    if not -limit <= value < limit:
        raise Unreadable(f"STRING_VALUE can not be converted to {_java_name(shape)}")
    return value


def write_scalar(shape: Any, value: Any) -> Any:
    """Return a value that holds no others as JSON can hold it."""
    match shape.type_name:
        case "timestamp":
            return epoch_ms(value)
        case "blob":
            return base64.b64encode(value).decode()
        case "float" | "double":
            return float(value)
    return value


def epoch_ms(value: datetime | float) -> float:
    """Return a time as seconds since the epoch, in milliseconds, as AWS gives them."""
    return round(value.timestamp() if isinstance(value, datetime) else value, 3)


def write_value(shape: Any, value: Any, scalar: Callable[[Any, Any], Any] = write_scalar) -> Any:
    """Return a value with its scalars as `scalar` writes them, so that JSON can hold it, say.

    A KeyError or TypeError is a mistake of the code that made the value.
    """
    match shape.type_name:
        case "structure":
            members = shape.members
            return {
                members[name].serialization.get("name", name): write_value(members[name], inner, scalar)
                for name, inner in value.items()
                if inner is not None
            }
        case "list":
            return [write_value(shape.member, inner, scalar) for inner in value]
        case "map":
            return {key: write_value(shape.value, inner, scalar) for key, inner in value.items()}
    return scalar(shape, value)


def _read_string(value: Any) -> str:
    text: str = _expect(value, str, "String")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unreadable("Unpaired surrogate in a string") from None
    return text


def _read_number(shape: Any, value: Any) -> float:
    is_whole = shape.type_name in _LIMITS
    number = None if isinstance(value, bool) or not isinstance(value, int | float) else value
    if number is None or (is_whole and number != number // 1):
        raise Unreadable(_unexpected(value, _java_name(shape)))
    limit = _LIMITS.get(shape.type_name, 1e300)
    if not -limit <= number < limit:
        raise Unreadable(f"NUMBER_VALUE can not be converted to {_java_name(shape)}: out of range")
    return int(number) if is_whole else float(number)


def _expect(value: Any, kind: type, wanted: str) -> Any:
    if not isinstance(value, kind):
        raise Unreadable(_unexpected(value, wanted))
    return value


def _java_name(shape: Any) -> str:
    return str(shape.type_name).capitalize()


def _unexpected(value: Any, wanted: str) -> str:
    """Say in AWS's words that a value is not `wanted`."""
    if isinstance(value, dict):
        return "Start of structure or map found where not expected."
    if isinstance(value, list):
        return "Start of list found where not expected."
    tokens = {bool: "TRUE_VALUE" if value else "FALSE_VALUE", str: "STRING_VALUE", bytes: "BYTES_VALUE"}
    token = tokens.get(type(value), "NUMBER_VALUE")
    if wanted in ("structure", "list", "map"):
        return f"Unexpected token received from parser: {token} where a {wanted} was expected."
    return f"{token} can not be converted to {wanted}"
