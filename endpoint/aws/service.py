"""An AWS service's wire form, read off botocore's own model of it: requests in, answers and errors out.

Knows json 1.1 and rest-json, the protocols of SageMaker's control plane and runtime; knows no operation by name.

- Unknown operations are refused with UnknownOperationException: 400 (json) or 404 (rest-json), as AWS does.
- Operations that the model has and the local endpoint lacks get the same code and 400, and say so (`not_implemented`):
  no SDK retries it, and none takes it for a success.
- Parameters that the model lacks are refused (AWS ignores them): they are those of a newer client, and dropping one
  could change what happens.
- An empty body is no payload, unless the model requires one.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import botocore
from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel

from endpoint.aws.constraints import Check, compile_check
from endpoint.aws.values import UnknownParameter, Unreadable, Writer, compile_reader, compile_writer, read_text

logger = logging.getLogger(__name__)

Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""(operation, parameters) -> its result. Raises AwsError."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


class AwsError(Exception):
    """What the caller is told. `members` are those of a modelled error besides its message (ModelError's, say)."""

    def __init__(self, code: str, message: str, status: int = 400, **members: Any) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        """For codes that the service's model doesn't know; else the model's holds."""
        self.members = members


def not_implemented(operation: str) -> AwsError:
    return AwsError("UnknownOperationException", f"{operation} is not implemented by the local endpoint")


class Service:
    """Safe to share between threads once made: what is compiled later is compiled twice at worst."""

    def __init__(self, name: str) -> None:
        """`name` is "sagemaker" or "sagemaker-runtime"."""
        # Not the default search paths: models that a user installed for their own clients are none of the server's.
        loader = Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
        self._model = ServiceModel(loader.load_service_model(name, "service-2"), name)
        self._is_rest = self._model.metadata["protocol"] == "rest-json"
        self._target = f"{self._model.metadata.get('targetPrefix')}."
        self._names = frozenset(self._model.operation_names)
        self._routes = _routes(self._model) if self._is_rest else []
        self._operations: dict[str, _Operation] = {}
        self._validation_error = "ValidationError" if self._is_rest else "ValidationException"
        self._errors: dict[str, Any] = {shape.error_code: shape for shape in self._model.error_shapes}

    def operation(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """Its name and its path's parameters. `path` is percent-decoded, as ASGI has it, and without the query."""
        if not self._is_rest:
            target = headers.get("x-amz-target", "")
            name = target.removeprefix(self._target)
            if method != "POST" or name == target or name not in self._names:
                raise AwsError("UnknownOperationException", f"Unknown operation: X-Amz-Target is '{target}'")
            return name, {}
        for wanted, pattern, name in self._routes:
            if method == wanted and (match := pattern.fullmatch(path)):
                return name, match.groupdict()
        raise AwsError("UnknownOperationException", f"Unknown operation {method} {path}", 404)

    def parse(
        self, operation: str, path_parameters: Mapping[str, str], headers: Mapping[str, str], query: str, body: bytes
    ) -> dict[str, Any]:
        """Raises AwsError if a value has the wrong type; `validate` looks at the rest. No operation has a query."""
        try:
            return self._operation(operation).parse(path_parameters, headers, body)
        except UnknownParameter as error:
            known = f"the local endpoint's model (botocore {botocore.__version__}) does not have it"
            raise AwsError(self._validation_error, f"{error}: {known}") from None
        except Unreadable as error:
            raise AwsError("SerializationException", str(error)) from None

    def validate(self, operation: str, parameters: dict[str, Any]) -> None:
        """Every constraint of the model. Rules between parameters are the operation's own."""
        wrong: list[str] = []
        self._operation(operation).check(parameters, "", wrong)
        if wrong:
            count = f"{len(wrong)} validation error{'s' if len(wrong) > 1 else ''} detected"
            raise AwsError(self._validation_error, f"{count}: {'; '.join(wrong)}")

    def answer(self, operation: str, result: dict[str, Any]) -> Answer:
        return self._operation(operation).answer(result)

    def error(self, error: AwsError) -> Answer:
        shape = self._errors.get(error.code)
        status = shape.metadata.get("error", {}).get("httpStatusCode", error.status) if shape else error.status
        # Modelled errors have `Message`; the framework's own (ValidationException, say) have `message`.
        body = {"Message" if shape else "message": error.message}
        if shape:
            body = compile_writer(shape)(body | error.members)
        if self._is_rest:
            body = {"Message" if name == "message" else name: value for name, value in body.items()}
        else:
            body = {"__type": error.code} | body
        headers = {"x-amzn-errortype": error.code, "content-type": self._content_type, **_request_id()}
        return Answer(status, headers, json.dumps(body).encode())

    async def respond(
        self, call: Call, method: str, path: str, headers: Mapping[str, str], query: str, body: bytes
    ) -> Answer:
        """The whole way of a request: `call` does what the operation means. Never raises for what happens there."""
        name = "?"
        try:
            name, path_parameters = self.operation(method, path, headers)
            parameters = self.parse(name, path_parameters, headers, query, body)
            self.validate(name, parameters)
            return self.answer(name, await call(name, parameters))
        except AwsError as error:
            return self.error(error)
        except Exception:
            logger.exception("operation failed", extra={"action": "operation failed", "operation": name})
            return self.error(AwsError("InternalFailure", f"{name} failed: see the local endpoint's log", 500))

    @cached_property
    def _content_type(self) -> str:
        return "application/json" if self._is_rest else f"application/x-amz-json-{self._model.metadata['jsonVersion']}"

    def _operation(self, name: str) -> _Operation:
        compiled = self._operations.get(name)
        if compiled is None:
            compiled = self._operations[name] = _Operation(self._model.operation_model(name), self._content_type)
        return compiled


class _Operation:
    """One operation, compiled."""

    def __init__(self, model: OperationModel, content_type: str) -> None:
        self._content_type = content_type
        self._status: int = model.http.get("responseCode", 200)
        self._input, self._output = model.input_shape, model.output_shape
        self.check: Check = compile_check(self._input)
        self._compile_input()
        self._compile_output()

    def _compile_input(self) -> None:
        self._labels: list[tuple[str, str, Callable[[str], Any]]] = []
        self._headers: list[tuple[str, str, Callable[[str], Any]]] = []
        self._payload: str | None = self._input.serialization.get("payload")
        for name, member in self._input.members.items():
            wire_name = member.serialization.get("name", name)
            match member.serialization.get("location"):
                case "uri":
                    self._labels.append((name, wire_name, read_text(member)))
                case "header":
                    self._headers.append((name, wire_name.lower(), read_text(member)))
        self._needs_payload = self._payload in self._input.required_members
        self._read_body = None if self._labels or self._headers or self._payload else compile_reader(self._input)

    def _compile_output(self) -> None:
        self._out_headers: dict[str, str] = {}
        self._out_payload: str | None = None
        self._write_body: Writer | None = None
        if self._output is None:
            return
        self._out_payload = self._output.serialization.get("payload")
        for name, member in self._output.members.items():
            if member.serialization.get("location") == "header":
                self._out_headers[name] = member.serialization["name"].lower()
        if self._out_payload is None:
            self._write_body = compile_writer(self._output)

    def parse(self, path_parameters: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        if self._read_body:
            parsed: dict[str, Any] = self._read_body(_load(body), "")
            return parsed
        parameters: dict[str, Any] = {}
        for name, label, read in self._labels:
            parameters[name] = read(path_parameters[label])
        for name, header, read in self._headers:
            text = headers.get(header)
            if text is not None:
                parameters[name] = read(text)
        if self._payload and (body or self._needs_payload):
            parameters[self._payload] = body
        return parameters

    def answer(self, result: dict[str, Any]) -> Answer:
        headers = _request_id()
        if self._output is None:
            return Answer(self._status, headers, b"")
        in_body = {}
        for name, value in result.items():
            if value is None:
                continue
            header = self._out_headers.get(name)
            if header:
                headers[header] = _header(header, value)
            else:
                in_body[name] = value
        if self._out_payload:
            return Answer(self._status, headers, in_body[self._out_payload])
        assert self._write_body, "no payload, but an output"
        headers["content-type"] = self._content_type
        return Answer(self._status, headers, json.dumps(self._write_body(in_body)).encode())


def _routes(model: ServiceModel) -> list[tuple[str, re.Pattern[str], str]]:
    routes = []
    for name in model.operation_names:
        http = model.operation_model(name).http
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>.+)", http["requestUri"])  # a slash may have been encoded
        routes.append((http["method"], re.compile(pattern, re.DOTALL), name))
    return routes


def _load(body: bytes) -> Any:
    """An empty body is an empty structure."""
    if not body:
        return {}
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Unreadable("The request's body is not JSON") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _header(name: str, value: Any) -> str:
    text = str(value)
    if "\r" in text or "\n" in text:
        raise ValueError(f"a line break in {name}")
    return text


def _request_id() -> dict[str, str]:
    return {"x-amzn-requestid": str(uuid.uuid4())}
