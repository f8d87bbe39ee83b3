"""An AWS service's wire form, read from botocore's own model of it: requests in, responses and errors out.

Knows json 1.1 and rest-json, the protocols of SageMaker's control plane and runtime; knows no operation by name.

- Unknown operations are refused with UnknownOperationException: 400 (json) or 404 (rest-json), as AWS does.
- Operations that the model has and the local endpoint lacks get the same code and 400, and say so (`not_implemented`):
  no SDK retries it, and none takes it for a success.
- Parameters that the model lacks are refused (AWS ignores them): they are those of a newer client, and dropping one
  could change what happens.
- An empty body is an absent payload, unless the model requires one.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import botocore
from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel
from starlette.responses import Response

from endpoint.aws.constraints import violations
from endpoint.aws.values import UnknownParameter, Unreadable, read_text, read_value, write_value

logger = logging.getLogger(__name__)

Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Function that gets an operation and its parameters and returns its result. Raises AwsError."""


class AwsError(Exception):
    """An error that the caller gets. `members` are a modelled error's besides its message (ModelError's, say)."""

    def __init__(self, code: str, message: str, status: int = 400, **members: Any) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        """Status for codes that the service's model doesn't know; it has those of the others."""
        self.members = members


def not_implemented(operation: str) -> AwsError:
    """Return the error of an operation that AWS has and the local endpoint lacks."""
    return AwsError("UnknownOperationException", f"{operation} is not implemented by the local endpoint")


class Service:
    """One service, by its name in botocore: "sagemaker" or "sagemaker-runtime".

    Safe to share between threads once made: what is prepared later is prepared twice at worst.
    """

    def __init__(self, name: str) -> None:
        # The default search paths would add models that a user installed for their own clients.
        loader = Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
        self._model = ServiceModel(loader.load_service_model(name, "service-2"), name)
        self._is_rest = self._model.metadata["protocol"] == "rest-json"
        self._target = f"{self._model.metadata.get('targetPrefix')}."
        self._names = frozenset(self._model.operation_names)
        self._routes: list[tuple[str, re.Pattern[str], str]] = []
        self._content_type = "application/json"
        self._validation_error = "ValidationError"
        if self._is_rest:
            for operation in self._model.operation_names:
                http = self._model.operation_model(operation).http
                pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>.+)", http["requestUri"])  # a slash may have been encoded
                self._routes.append((http["method"], re.compile(pattern, re.DOTALL), operation))
        else:
            self._content_type = f"application/x-amz-json-{self._model.metadata['jsonVersion']}"
            self._validation_error = "ValidationException"
        self._operations: dict[str, _Operation] = {}
        self._errors: dict[str, Any] = {shape.error_code: shape for shape in self._model.error_shapes}

    async def respond(self, call: Call, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Answer a request: `call` does what the operation means. Never raises for what happens there."""
        name = "?"
        try:
            name, path_parameters = self.operation(method, path, headers)
            parameters = self.parse(name, path_parameters, headers, body)
            self.validate(name, parameters)
            return self.response(name, await call(name, parameters))
        except AwsError as error:
            return self.error_response(error)
        except Exception:
            logger.exception("operation failed", extra={"action": "operation failed", "operation": name})
            return self.error_response(AwsError("InternalFailure", f"{name} failed: see the local endpoint's log", 500))

    def operation(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """Return the operation's name and its path's parameters. `path` is percent-decoded, without the query."""
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
        self, operation: str, path_parameters: Mapping[str, str], headers: Mapping[str, str], body: bytes
    ) -> dict[str, Any]:
        """Return the operation's parameters. Raises AwsError if one has the wrong type; `validate` checks the rest."""
        try:
            return self._operation(operation).parse(path_parameters, headers, body)
        except UnknownParameter as error:
            known = f"the local endpoint's model (botocore {botocore.__version__}) does not have it"
            raise AwsError(self._validation_error, f"{error}: {known}") from None
        except Unreadable as error:
            raise AwsError("SerializationException", str(error)) from None

    def validate(self, operation: str, parameters: dict[str, Any]) -> None:
        """Check every constraint of the model. Rules between parameters are the operation's own. Raises AwsError."""
        found = list(violations(self._operation(operation).input, parameters))
        if found:
            count = f"{len(found)} validation error{'s' if len(found) > 1 else ''} detected"
            raise AwsError(self._validation_error, f"{count}: {'; '.join(found)}")

    def response(self, operation: str, result: dict[str, Any]) -> Response:
        """Return an operation's result in its wire form."""
        return self._operation(operation).response(result)

    def error_response(self, error: AwsError) -> Response:
        """Return an error in its wire form."""
        shape = self._errors.get(error.code)
        status = shape.metadata.get("error", {}).get("httpStatusCode", error.status) if shape else error.status
        # Modelled errors have `Message`; the framework's own (ValidationException, say) have `message`.
        body = {"Message" if shape else "message": error.message}
        if shape:
            body = write_value(shape, body | error.members)
        if self._is_rest:
            body = {"Message" if name == "message" else name: value for name, value in body.items()}
        else:
            body = {"__type": error.code} | body
        headers = {"x-amzn-errortype": error.code, "content-type": self._content_type, **_request_id()}
        return Response(json.dumps(body), status, headers)

    def _operation(self, name: str) -> _Operation:
        if name not in self._operations:
            self._operations[name] = _Operation(self._model.operation_model(name), self._content_type)
        return self._operations[name]


class _Operation:
    """One operation, with its members sorted by where they are in requests and responses."""

    def __init__(self, model: OperationModel, content_type: str) -> None:
        self.input, self._output = model.input_shape, model.output_shape
        self._content_type = content_type
        self._status: int = model.http.get("responseCode", 200)
        self._payload: str | None = self.input.serialization.get("payload")
        self._needs_payload = self._payload in self.input.required_members
        self._labels: list[tuple[str, str, Any]] = []
        self._headers: list[tuple[str, str, Any]] = []
        for name, member in self.input.members.items():
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
            parameters = read_value(self.input, _load(body) if body else {})  # an empty body is an empty structure
        for name, label, shape in self._labels:
            parameters[name] = read_text(shape, path_parameters[label])
        for name, header, shape in self._headers:
            if (text := headers.get(header)) is not None:
                parameters[name] = read_text(shape, text)
        if self._payload and (body or self._needs_payload):
            parameters[self._payload] = body
        return parameters

    def response(self, result: dict[str, Any]) -> Response:
        headers = _request_id()
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
        headers["content-type"] = self._content_type
        return Response(json.dumps(write_value(self._output, in_body)), self._status, headers)


def _load(body: bytes) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        return json.loads(body.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Unreadable("The request's body is not JSON") from None


def _request_id() -> dict[str, str]:
    return {"x-amzn-requestid": str(uuid.uuid4())}
