"""Checks each response that unmodified boto3 clients get, raw and parsed, against botocore's output shapes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from botocore.validate import ParamValidator

from endpoint.aws.constraints import violations
from testing.endpoint.botocore_wire import client

_REQUEST_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Witness:
    """Must be closed. A response out of shape is an AssertionError of the call that got it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._clients: list[Any] = []
        self.answered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def client(self, service: str, **config: Any) -> Any:
        made = client(service, url=self._url, **config)
        made.meta.events.register("after-call", self._look)
        self._clients.append(made)
        return made

    def close(self) -> None:
        for made in self._clients:
            made.close()

    def _look(self, http_response: Any, parsed: dict[str, Any], model: Any, **_: Any) -> None:
        headers = {name.lower(): value for name, value in http_response.headers.items()}
        assert _REQUEST_ID.fullmatch(headers["x-amzn-requestid"])
        assert parsed["ResponseMetadata"]["RequestId"] == headers["x-amzn-requestid"]
        if http_response.status_code >= 300:
            self.refused[model.name] += 1
            check_error(model.service_model, http_response.status_code, headers, http_response.content, parsed)
        else:
            self.answered[model.name] += 1
            check_answer(model, http_response, headers, parsed)


def check_answer(operation: Any, http_response: Any, headers: Mapping[str, str], parsed: dict[str, Any]) -> None:
    assert http_response.status_code == operation.http.get("responseCode", 200)
    shape = operation.output_shape
    if shape is None:
        assert http_response.content == b""
        return
    result = {name: value for name, value in parsed.items() if name != "ResponseMetadata"}
    if payload := shape.serialization.get("payload"):
        check_parsed(shape, result | {payload: b""})  # what is there is a stream, for the caller to read
        return
    check_parsed(shape, result)
    is_rest = operation.service_model.metadata["protocol"] == "rest-json"
    assert headers["content-type"] == ("application/json" if is_rest else "application/x-amz-json-1.1")
    body = json.loads(http_response.content)
    for name, member in shape.members.items():
        if member.serialization.get("location") == "header":
            header = member.serialization["name"]
            assert not {name, header} & body.keys(), f"{name} is not a header"
            body |= {header: headers[header.lower()]} if header.lower() in headers else {}
    check_raw(shape, body, operation.name)


def check_parsed(shape: Any, parsed: dict[str, Any]) -> None:
    """Check by botocore's own validator of parameters, and the constraints that it omits (patterns, enums, sizes)."""
    report = ParamValidator().validate(parsed, shape)
    assert not report.has_errors(), report.generate_report()
    assert list(violations(shape, parsed)) == []


def check_raw(shape: Any, value: Any, where: str) -> None:
    """Check a value as JSON held it."""
    match shape.type_name:
        case "structure":
            assert isinstance(value, dict), where
            members = {member.serialization.get("name", name): member for name, member in shape.members.items()}
            assert value.keys() <= members.keys(), f"{where}: unknown {value.keys() - members.keys()}"
            required = {shape.members[name].serialization.get("name", name) for name in shape.required_members}
            assert required <= value.keys(), f"{where}: without {required - value.keys()}"
            for name, inner in value.items():
                check_raw(members[name], inner, f"{where}.{name}")
        case "list":
            assert isinstance(value, list), where
            for number, inner in enumerate(value):
                check_raw(shape.member, inner, f"{where}[{number}]")
        case "map":
            assert isinstance(value, dict), where
            for key, inner in value.items():
                check_raw(shape.value, inner, f"{where}[{key}]")
        case "string":
            assert isinstance(value, str), where
        case "boolean":
            assert isinstance(value, bool), where
        case "integer" | "long":
            assert isinstance(value, int) and not isinstance(value, bool), where
        case "float" | "double" | "timestamp":  # seconds since the epoch
            assert isinstance(value, int | float) and not isinstance(value, bool), where
        case other:
            raise AssertionError(f"{where} is a {other}")


def check_error(service: Any, status: int, headers: Mapping[str, str], raw: bytes, parsed: dict[str, Any]) -> None:
    """Check the code in header and body, the message under its kind's one name, and the modelled status."""
    code, message, body = headers["x-amzn-errortype"], parsed["Error"]["Message"], json.loads(raw)
    assert parsed["Error"]["Code"] == code and message
    is_rest = service.metadata["protocol"] == "rest-json"
    assert headers["content-type"] == ("application/json" if is_rest else "application/x-amz-json-1.1")
    assert body.pop("__type", None) == (None if is_rest else code)
    modelled = {shape.error_code: shape for shape in service.error_shapes}.get(code)
    if modelled is None:
        assert body == {"Message" if is_rest else "message": message}
        return
    assert status == modelled.metadata.get("error", {}).get("httpStatusCode", 400)
    assert body["Message"] == message
    check_raw(modelled, body, code)
