"""The protocol query: an operation and its parameters as a form, answers and errors as XML."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from starlette.responses import Response

from endpoint.aws.errors import AwsError, FormError
from endpoint.aws.values import UnknownParameter, Unreadable, epoch_ms, read_value
from endpoint.aws.wire import HttpRequest, Wire, query_code, request_id, sender_or_receiver

FORM = "application/x-www-form-urlencoded"
_MAX_FIELDS = 100_000
_MAX_DEPTH = 32
_NOT_PARAMETERS = re.compile(r"Action|Version|AWSAccessKeyId|Signature.*|Timestamp|SecurityToken|X-Amz-.*")
"""Names of fields that belong to the request, those of its signature among them."""
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_Tree = dict[str, Any]
"""Fields by the parts of their names: dicts within each other, and texts at the ends."""


def read_form(request: HttpRequest) -> dict[str, str]:
    """Return the fields of a request's query string and body, each given once. Raises AwsError."""
    form = request.content() if request.headers.get("content-type", "").startswith(FORM) else b""
    fields: dict[str, str] = {}
    for part in (request.query.encode("latin-1"), form):
        try:
            pairs = parse_qsl(part.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
        except ValueError:  # UnicodeDecodeError is one
            raise FormError("SerializationException", "The request's parameters are not a form") from None
        for name, value in pairs:
            if fields.setdefault(name, value) != value:
                raise FormError("SerializationException", f"{name} is given twice")
    return fields


class QueryWire(Wire):
    content_type = "text/xml"

    def operation(self, request: HttpRequest) -> tuple[str, dict[str, str]]:
        fields = read_form(request)
        name, version = fields.get("Action", ""), fields.get("Version", self._model.api_version)
        if not name:
            raise FormError("MissingAction", "Missing Action")
        is_at_root = request.method in ("GET", "POST") and request.path == "/"
        if not is_at_root or version != self._model.api_version or name not in self._names:
            raise FormError("UnknownOperationException", f"Could not find operation {name} for version {version}")
        return name, {}

    def parse(self, operation: str, path_parameters: Mapping[str, str], request: HttpRequest) -> dict[str, Any]:
        shape = self._operation_model(operation).input_shape
        tree = _tree({n: value for n, value in read_form(request).items() if not _is_of_request(n, shape)})
        parameters: dict[str, Any] = read_value(shape, _read(shape, tree)) if shape else {}
        return parameters

    def response(self, operation: str, result: dict[str, Any]) -> Response:
        shape = self._operation_model(operation).output_shape
        headers = request_id()
        content = "".join(_write_members(shape, result)) if shape else ""
        if shape and (wrapper := shape.serialization.get("resultWrapper")):
            content = f"<{wrapper}>{content}</{wrapper}>"
        metadata = f"<ResponseMetadata><RequestId>{headers['x-amzn-requestid']}</RequestId></ResponseMetadata>"
        body = f"<{operation}Response{self._namespace}>{content}{metadata}</{operation}Response>"
        return Response(body, 200, headers | {"content-type": self.content_type})

    def error_response(self, error: AwsError, headers: Mapping[str, str]) -> Response:
        shape, status = self._error_shape(error)
        answer = request_id()
        content = "".join(_write_members(shape, error.members)) if shape else ""
        described = (
            f"<Type>{sender_or_receiver(status)}</Type><Code>{_text(query_code(error))}</Code>"
            f"<Message>{_text(error.message)}</Message>{content}"
        )
        tail = f"<RequestId>{answer['x-amzn-requestid']}</RequestId>"
        body = f"<ErrorResponse{self._namespace}><Error>{described}</Error>{tail}</ErrorResponse>"
        return Response(body, status, answer | {"content-type": self.content_type})

    @property
    def _namespace(self) -> str:
        namespace = self._model.metadata.get("xmlNamespace")
        return f' xmlns="{namespace}"' if namespace else ""


# Forms to values


def _is_of_request(name: str, shape: Any) -> bool:
    return _NOT_PARAMETERS.fullmatch(name) is not None and not (shape and name in shape.members)


def _tree(fields: Mapping[str, str]) -> _Tree:
    tree: _Tree = {}
    for name, text in fields.items():
        *path, last = name.split(".", _MAX_DEPTH)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise Unreadable(f"{name}: a value was given for a part of this name")
        if last in node:
            raise Unreadable(f"{name}: a value was given for a longer name")
        node[last] = text
    return tree


def _read(shape: Any, node: Any, path: str = "") -> Any:
    """Return the value that JSON would have. What isn't as the shape says stays, for `read_value` to refuse it."""
    match shape.type_name:
        case "structure" if isinstance(node, dict):
            return dict(_read_members(shape, node, path))
        case "list" if isinstance(node, dict):
            if not shape.serialization.get("flattened"):
                node = _only(node, shape.member.serialization.get("name", "member"), path)
            return [_read(shape.member, inner, path) for inner in _in_order(node, path)]
        case "map" if isinstance(node, dict):
            entries = node if shape.serialization.get("flattened") else _only(node, "entry", path)
            return dict(_read_entry(shape, entry, path) for entry in _in_order(entries, path))
        case "structure" | "map" if node == "":
            return {}
        case "list" if node == "":
            return []
    return _read_scalar(shape, node, path) if isinstance(node, str) else node


def _read_members(shape: Any, node: _Tree, path: str) -> Iterator[tuple[str, Any]]:
    members = {}
    for name, member in shape.members.items():
        wire_name = member.serialization.get("name", name)
        if member.type_name == "list" and member.serialization.get("flattened"):
            wire_name = member.member.serialization.get("name", wire_name)
        members[wire_name] = (member.serialization.get("name", name), member)
    for wire_name, inner in node.items():
        inner_path = f"{path}.{wire_name}" if path else wire_name
        if wire_name not in members:
            raise UnknownParameter(f'Unknown parameter "{wire_name}"{f" in {path}" if path else ""}')
        name, member = members[wire_name]
        yield name, _read(member, inner, inner_path)


def _read_entry(shape: Any, entry: Any, path: str) -> tuple[Any, Any]:
    key, value = (part.serialization.get("name", name) for part, name in ((shape.key, "key"), (shape.value, "value")))
    if not isinstance(entry, dict) or set(entry) != {key, value}:
        raise Unreadable(f"{path} has an entry that is not a {key} and a {value}")
    return entry[key], _read(shape.value, entry[value], path)


def _only(node: _Tree, name: str, path: str) -> _Tree:
    inner = node.get(name)
    if len(node) != 1 or not isinstance(inner, dict):
        raise Unreadable(f"{path} is not followed by .{name} and a number")
    return inner


def _in_order(node: _Tree, path: str) -> list[Any]:
    if not all(number.isascii() and number.isdigit() and len(number) < 10 for number in node):
        raise Unreadable(f"{path} has a member without a number")
    return [node[number] for number in sorted(node, key=int)]


def _read_scalar(shape: Any, text: str, path: str) -> Any:
    try:
        match shape.type_name:
            case "boolean":
                return {"true": True, "false": False}[text.strip().lower()]
            case "integer" | "long":
                return int(_plain(text))
            case "float" | "double":
                return float(_plain(text))
            case "timestamp":
                return _read_time(text.strip())
    except (ValueError, KeyError, OverflowError):
        if shape.type_name == "timestamp":
            raise Unreadable("timestamp must follow ISO8601") from None
        raise Unreadable(f"{path}: STRING_VALUE can not be converted to {shape.type_name.capitalize()}") from None
    return text


def _plain(text: str) -> str:
    if not text.isascii() or "_" in text or len(text) > 40:
        raise ValueError(text)
    return text


def _read_time(text: str) -> float:
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


# Values to XML


def _write_members(shape: Any, value: Mapping[str, Any]) -> Iterator[str]:
    for name, inner in value.items():
        if inner is not None:
            member = shape.members[name]
            yield from _write(member, inner, member.serialization.get("name", name))


def _write(shape: Any, value: Any, name: str) -> Iterator[str]:
    is_flat = shape.serialization.get("flattened")
    match shape.type_name:
        case "structure":
            yield f"<{name}>{''.join(_write_members(shape, value))}</{name}>"
        case "list":
            inner_name = shape.member.serialization.get("name", name if is_flat else "member")
            content = "".join(part for inner in value for part in _write(shape.member, inner, inner_name))
            yield content if is_flat else f"<{name}>{content}</{name}>"
        case "map":
            content = "".join(
                _write_entry(shape, key, inner, name if is_flat else "entry") for key, inner in value.items()
            )
            yield content if is_flat else f"<{name}>{content}</{name}>"
        case _:
            yield f"<{name}>{_text(_scalar(shape, value))}</{name}>"


def _write_entry(shape: Any, key: str, value: Any, name: str) -> str:
    parts = [*_write(shape.key, key, shape.key.serialization.get("name", "key"))]
    parts += _write(shape.value, value, shape.value.serialization.get("name", "value"))
    return f"<{name}>{''.join(parts)}</{name}>"


def _scalar(shape: Any, value: Any) -> str:
    match shape.type_name:
        case "timestamp":
            time = datetime.fromtimestamp(epoch_ms(value), UTC)
            return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case "boolean":
            return "true" if value else "false"
        case "float" | "double":
            return str(float(value))
        case "blob":
            return base64.b64encode(value).decode()
    return str(value)


def _text(text: str) -> str:
    """Return text for XML, which can't hold control characters: these become U+FFFD."""
    return escape(_NOT_IN_XML.sub("\ufffd", text), {"\r": "&#13;"})
