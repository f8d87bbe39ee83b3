"""AWS's JSON protocols: json 1.0 and 1.1, where a header names the operation, and rest-json, where the path does."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from botocore.model import OperationModel, ServiceModel
from starlette.responses import Response

from endpoint.aws.errors import AwsError, FormError
from endpoint.aws.values import Unreadable, read_text, read_value, write_value
from endpoint.aws.wire import HttpRequest, Wire, error_body, request_id


class JsonWire(Wire):
    """The protocol json. In what is query-compatible, errors have the codes of the query protocol in a header."""

    def __init__(self, model: ServiceModel) -> None:
        super().__init__(model)
        self.content_type = f"application/x-amz-json-{model.metadata['jsonVersion']}"
        self._target = f"{model.metadata['targetPrefix']}."

    def operation(self, request: HttpRequest) -> tuple[str, dict[str, str]]:
        target = request.headers.get("x-amz-target", "")
        name = target.removeprefix(self._target)
        if request.method != "POST" or name == target or name not in self._names:
            raise FormError("UnknownOperationException", f"Unknown operation: X-Amz-Target is '{target}'")
        return name, {}

    def parse(self, operation: str, path_parameters: Mapping[str, str], request: HttpRequest) -> dict[str, Any]:
        shape = self._operation_model(operation).input_shape
        content = request.content()
        value = _load(content) if content else {}  # an empty body is an empty structure
        parameters: dict[str, Any] = read_value(shape, value) if shape else {}
        return parameters

    def response(self, operation: str, result: dict[str, Any]) -> Response:
        shape = self._operation_model(operation).output_shape
        if shape is None:
            return Response(b"", 200, request_id())
        body = json.dumps(write_value(shape, result))
        return Response(body, 200, {"content-type": self.content_type, **request_id()})

    def error_response(self, error: AwsError, headers: Mapping[str, str]) -> Response:
        shape, status = self._error_shape(error)
        body = {"__type": shape.name if shape else error.code} | error_body(error, shape)
        return Response(json.dumps(body), status, self._error_headers(error, shape, status, headers))


class RestJsonWire(Wire):
    """The protocol rest-json: parameters are in the path, in headers, and in the body, whole or as JSON."""

    content_type = "application/json"

    def __init__(self, model: ServiceModel) -> None:
        super().__init__(model)
        self._routes: list[tuple[str, re.Pattern[str], str]] = []
        for operation in model.operation_names:
            http = model.operation_model(operation).http
            pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>.+)", http["requestUri"])  # a slash may have been encoded
            self._routes.append((http["method"], re.compile(pattern, re.DOTALL), operation))
        self._operations: dict[str, _RestOperation] = {}

    def operation(self, request: HttpRequest) -> tuple[str, dict[str, str]]:
        for method, pattern, name in self._routes:
            if request.method == method and (match := pattern.fullmatch(request.path)):
                return name, match.groupdict()
        raise FormError("UnknownOperationException", f"Unknown operation {request.method} {request.path}", 404)

    def parse(self, operation: str, path_parameters: Mapping[str, str], request: HttpRequest) -> dict[str, Any]:
        return self._operation(operation).parse(path_parameters, request.headers, request.body)

    def response(self, operation: str, result: dict[str, Any]) -> Response:
        return self._operation(operation).response(result, self.content_type)

    def error_response(self, error: AwsError, headers: Mapping[str, str]) -> Response:
        shape, status = self._error_shape(error)
        body = {"Message" if name == "message" else name: value for name, value in error_body(error, shape).items()}
        return Response(json.dumps(body), status, self._error_headers(error, shape, status, headers))

    def _operation(self, name: str) -> _RestOperation:
        if name not in self._operations:
            self._operations[name] = _RestOperation(self._operation_model(name))
        return self._operations[name]


class _RestOperation:
    """One operation, with its members sorted by where they are in requests and responses."""

    def __init__(self, model: OperationModel) -> None:
        self._input, self._output = model.input_shape, model.output_shape
        self._status: int = model.http.get("responseCode", 200)
        self._payload: str | None = self._input.serialization.get("payload")
        self._needs_payload = self._payload in self._input.required_members
        self._labels: list[tuple[str, str, Any]] = []
        self._headers: list[tuple[str, str, Any]] = []
        for name, member in self._input.members.items():
            wire_name = member.serialization.get("name", name)
            match member.serialization.get("location"):
                case "uri":
                    self._labels.append((name, wire_name, member))
                case "header":
                    self._headers.append((name, wire_name.lower(), member))
        self._has_body = not (self._labels or self._headers or self._payload)
        self._output_payload: str | None = self._output.serialization.get("payload") if self._output else None
        self._output_headers: dict[str, str] = {
            name: member.serialization["name"].lower()
            for name, member in (self._output.members if self._output else {}).items()
            if member.serialization.get("location") == "header"
        }

    def parse(self, path_parameters: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        parameters: dict[str, Any] = {}
        if self._has_body:
            parameters = read_value(self._input, _load(body) if body else {})
        for name, label, shape in self._labels:
            parameters[name] = read_text(shape, path_parameters[label])
        for name, header, shape in self._headers:
            if (text := headers.get(header)) is not None:
                parameters[name] = read_text(shape, text)
        if self._payload and (body or self._needs_payload):
            parameters[self._payload] = body
        return parameters

    def response(self, result: dict[str, Any], content_type: str) -> Response:
        headers = request_id()
        in_body = {}
        for name, value in result.items():
            if value is None:
                continue
            if header := self._output_headers.get(name):
                text = str(value)
                if "\r" in text or "\n" in text:
                    raise ValueError(f"a line break in {header}")
                headers[header] = text.encode().decode("latin-1")  # AWS sends UTF-8; Response encodes as Latin-1
            else:
                in_body[name] = value
        if self._output is None:
            return Response(b"", self._status, headers)
        if self._output_payload:
            return Response(in_body[self._output_payload], self._status, headers)
        headers["content-type"] = content_type
        return Response(json.dumps(write_value(self._output, in_body)), self._status, headers)


def _load(body: bytes) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        return json.loads(body.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Unreadable("The request's body is not JSON") from None
