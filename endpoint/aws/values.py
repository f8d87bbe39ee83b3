"""Values of a service's shapes: out of JSON, checked for their types, and back. Times are seconds since the epoch.

Knows no constraints (aws_constraints) and no requests (aws_model).
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

Reader = Callable[[Any, str], Any]
"""(what JSON held, where it was) -> the value. Raises Unreadable."""
Writer = Callable[[Any], Any]

_LIMITS = {"integer": 2**31, "long": 2**63}


class Unreadable(ValueError):
    """A value has another type than its shape."""


class UnknownParameter(Unreadable):
    """The model has no such member. AWS ignores these; here one may be newer than the model, so it isn't dropped."""


def compile_reader(shape: Any) -> Reader:
    """`shape` is a botocore.model.Shape; its members' locations are not looked at. Nulls are dropped, as AWS does."""
    return _compile_reader(shape, {})


def compile_writer(shape: Any) -> Writer:
    """Its KeyError or TypeError is a mistake of whoever made the value."""
    return _compile_writer(shape, {})


def read_text(shape: Any) -> Callable[[str], Any]:
    """Of a header or a path."""
    if shape.type_name in ("integer", "long"):
        limit = _LIMITS[shape.type_name]

        def read_integer(text: str) -> int:
            try:
                value = int(text) if text.isascii() and len(text) < 20 else limit
            except ValueError:
                value = limit
            if not -limit <= value < limit:
                raise Unreadable(f"STRING_VALUE can not be converted to {_java_name(shape)}")
            return value

        return read_integer
    if shape.type_name == "string":
        return str
    raise NotImplementedError(f"{shape.type_name} in a header")  # none of the services here


def _compile_reader(shape: Any, known: dict[str, list[Reader]]) -> Reader:
    if shape.name in known:
        later = known[shape.name]
        return lambda value, where: later[0](value, where)
    known[shape.name] = cell = []
    match shape.type_name:
        case "structure":
            reader = _structure_reader(shape, known)
        case "list":
            reader = _list_reader(shape, known)
        case "map":
            reader = _map_reader(shape, known)
        case "string":
            reader = _read_string
        case "boolean":
            reader = _read_boolean
        case "integer" | "long":
            reader = _integer_reader(shape)
        case "float" | "double" | "timestamp":
            reader = _number_reader(shape)
        case "blob":
            reader = _read_blob
        case _:
            raise NotImplementedError(shape.type_name)
    cell.append(reader)
    del known[shape.name]
    return reader


def _structure_reader(shape: Any, known: dict[str, list[Reader]]) -> Reader:
    members = {
        member.serialization.get("name", name): (name, _compile_reader(member, known))
        for name, member in shape.members.items()
    }

    def read(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Unreadable(_unexpected(value, "structure"))
        result = {}
        for name, inner in value.items():
            if name not in members:
                raise UnknownParameter(f'Unknown parameter "{name}"{f" in {where}" if where else ""}')
            if inner is not None:
                member, read_member = members[name]
                result[member] = read_member(inner, f"{where}.{member}" if where else member)
        return result

    return read


def _list_reader(shape: Any, known: dict[str, list[Reader]]) -> Reader:
    read_member = _compile_reader(shape.member, known)

    def read(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise Unreadable(_unexpected(value, "list"))
        return [None if inner is None else read_member(inner, where) for inner in value]

    return read


def _map_reader(shape: Any, known: dict[str, list[Reader]]) -> Reader:
    read_key, read_value = _compile_reader(shape.key, known), _compile_reader(shape.value, known)

    def read(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Unreadable(_unexpected(value, "map"))
        return {
            read_key(key, where): read_value(inner, where) if inner is not None else None
            for key, inner in value.items()
        }

    return read


def _read_string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Unreadable(_unexpected(value, "String"))
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unreadable("Unpaired surrogate in a string") from None
    return value


def _read_boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise Unreadable(_unexpected(value, "Boolean"))
    return value


def _integer_reader(shape: Any) -> Reader:
    limit = _LIMITS[shape.type_name]

    def read(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            raise Unreadable(_unexpected(value, _java_name(shape)))
        if not -limit <= value < limit:
            raise Unreadable(f"NUMBER_VALUE can not be converted to {_java_name(shape)}: out of range")
        return int(value)

    return read


def _number_reader(shape: Any) -> Reader:
    def read(value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unreadable(_unexpected(value, _java_name(shape)))
        number = float(value) if abs(value) < 1e300 else math.inf
        if not math.isfinite(number):
            raise Unreadable(f"NUMBER_VALUE can not be converted to {_java_name(shape)}: out of range")
        return number

    return read


def _read_blob(value: Any, where: str) -> bytes:
    try:
        return base64.b64decode(_read_string(value, where), validate=True)
    except (binascii.Error, ValueError):
        raise Unreadable("STRING_VALUE can not be converted to Blob: not base64") from None


def _java_name(shape: Any) -> str:
    return str(shape.type_name).capitalize()


def _unexpected(value: Any, wanted: str) -> str:
    if isinstance(value, dict):
        return "Start of structure or map found where not expected."
    if isinstance(value, list):
        return "Start of list found where not expected."
    token = {bool: "TRUE_VALUE" if value else "FALSE_VALUE", str: "STRING_VALUE"}.get(type(value), "NUMBER_VALUE")
    if wanted in ("structure", "list", "map"):
        return f"Unexpected token received from parser: {token} where a {wanted} was expected."
    return f"{token} can not be converted to {wanted}"


def _compile_writer(shape: Any, known: dict[str, list[Writer]]) -> Writer:
    if shape.name in known:
        later = known[shape.name]
        return lambda value: later[0](value)
    known[shape.name] = cell = []
    writer = _writer_of(shape, known)
    cell.append(writer)
    del known[shape.name]
    return writer


def _writer_of(shape: Any, known: dict[str, list[Writer]]) -> Writer:
    match shape.type_name:
        case "structure":
            members = {
                name: (member.serialization.get("name", name), _compile_writer(member, known))
                for name, member in shape.members.items()
            }

            def write_structure(value: dict[str, Any]) -> dict[str, Any]:
                written = {}
                for name, inner in value.items():
                    if inner is not None:
                        wire_name, write = members[name]
                        written[wire_name] = write(inner)
                return written

            return write_structure
        case "list":
            write_member = _compile_writer(shape.member, known)
            return lambda value: [write_member(inner) for inner in value]
        case "map":
            write_value = _compile_writer(shape.value, known)
            return lambda value: {key: write_value(inner) for key, inner in value.items()}
        case "timestamp":
            return _write_time
        case "blob":
            return lambda value: base64.b64encode(value).decode()
        case _:
            return lambda value: value


def _write_time(value: float | datetime) -> float:
    """Milliseconds, as AWS gives them."""
    return round(value.timestamp() if isinstance(value, datetime) else value, 3)
