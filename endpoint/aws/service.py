"""An AWS service's wire form, read from botocore's own model of it: requests in, responses and errors out.

Knows the protocols json, rest-json, query and smithy-rpc-v2-cbor, and no operation by name. A service that has several
answers each request in the request's own.

- Unknown operations are refused with UnknownOperationException: 400 (json) or 404 (rest-json, CBOR), as AWS does, and
  with InvalidAction in the query protocol.
- Operations that the model has and the local endpoint lacks get the same code and 400, and say so (`not_implemented`):
  no SDK retries it, and none takes it for a success.
- Parameters that the model lacks are refused (AWS ignores them): they are those of a newer client, and dropping one
  could change what happens.
- An empty body is an absent payload, unless the model requires one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import botocore
from botocore.loaders import Loader
from botocore.model import ServiceModel
from starlette.responses import Response

from endpoint.aws.cbor_wire import PROTOCOL, CborWire
from endpoint.aws.constraints import violations
from endpoint.aws.errors import AwsError, FormError
from endpoint.aws.json_wires import JsonWire, RestJsonWire
from endpoint.aws.query_wire import QueryWire
from endpoint.aws.values import UnknownParameter, Unreadable
from endpoint.aws.wire import HttpRequest, Wire

logger = logging.getLogger(__name__)

Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Function that gets an operation and its parameters and returns its result. Raises AwsError."""

_WIRES: dict[str, type[Wire]] = {
    "json": JsonWire,
    "rest-json": RestJsonWire,
    "query": QueryWire,
    "smithy-rpc-v2-cbor": CborWire,
}


class Service:
    """One service, by its name in botocore: "sagemaker", "sagemaker-runtime" or "cloudwatch", say.

    Safe to share between threads once made: what is prepared later is prepared twice at worst.
    """

    def __init__(self, name: str) -> None:
        # The default search paths would add models that a user installed for their own clients.
        loader = Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
        self._model = ServiceModel(loader.load_service_model(name, "service-2"), name)
        metadata = self._model.metadata
        protocols = metadata.get("protocols", [metadata["protocol"]])
        self._wires = {protocol: _WIRES[protocol](self._model) for protocol in protocols if protocol in _WIRES}
        self._validation_error = "ValidationError" if metadata["protocol"] == "rest-json" else "ValidationException"
        for shape in self._model.error_shapes:
            if shape.name == "ValidationException":  # CloudWatch's code for it is another
                self._validation_error = shape.error_code

    def wire(self, headers: Mapping[str, str]) -> Wire:
        """Return the protocol that a request speaks, as its headers (in lower case) tell."""
        wanted = "smithy-rpc-v2-cbor" if headers.get("smithy-protocol") == PROTOCOL else "query"
        if "x-amz-target" in headers:  # it counts before the path, as in the backend
            wanted = "json"
        return self._wires.get(wanted) or next(iter(self._wires.values()))

    async def respond(self, call: Call, request: HttpRequest) -> Response:
        """Answer a request: `call` does what the operation means. Never raises for what happens there."""
        wire = self.wire(request.headers)
        name = "?"
        try:
            name, parameters = self.read(request)
            return wire.response(name, await call(name, parameters))
        except AwsError as refused:
            return wire.error_response(refused, request.headers)
        except Exception:
            logger.exception("operation failed", extra={"action": "operation failed", "operation": name})
            failed = AwsError("InternalFailure", f"{name} failed: see the local endpoint's log", 500)
            return wire.error_response(failed, request.headers)

    def read(self, request: HttpRequest) -> tuple[str, dict[str, Any]]:
        """Return the operation's name and its valid parameters. Raises AwsError."""
        wire = self.wire(request.headers)
        name, path_parameters = wire.operation(request)
        parameters = self.parse(name, path_parameters, request)
        self.validate(name, parameters)
        return name, parameters

    def parse(self, operation: str, path_parameters: Mapping[str, str], request: HttpRequest) -> dict[str, Any]:
        """Return the operation's parameters. Raises AwsError if one has the wrong type; `validate` checks the rest."""
        try:
            return self.wire(request.headers).parse(operation, path_parameters, request)
        except UnknownParameter as error:
            known = f"the local endpoint's model (botocore {botocore.__version__}) does not have it"
            raise FormError(self._validation_error, f"{error}: {known}") from None
        except Unreadable as error:
            raise FormError("SerializationException", str(error)) from None

    def validate(self, operation: str, parameters: dict[str, Any]) -> None:
        """Check every constraint of the model. Rules between parameters are the operation's own. Raises AwsError."""
        shape = self._model.operation_model(operation).input_shape
        found = list(violations(shape, parameters)) if shape else []
        if found:
            count = f"{len(found)} validation error{'s' if len(found) > 1 else ''} detected"
            raise FormError(self._validation_error, f"{count}: {'; '.join(found)}")
