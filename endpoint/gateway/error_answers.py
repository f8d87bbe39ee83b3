"""AWS's form of an error, for each protocol that its clients speak: what they need to raise the right exception."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from endpoint.gateway.request import Answer, Request, service_of

_XML_SERVICES = frozenset({"cloudfront", "route53"})


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    status: int
    headers: Mapping[str, str]
    body: bytes


def not_implemented(request: Request, what: str) -> Answer:
    form = _form_of(request)
    if form == "query":
        return error_answer(request, 400, "InvalidAction", f"{what} is not part of this endpoint.")
    if form == "s3":
        return error_answer(request, 501, "NotImplemented", f"{what} is not part of this endpoint.")
    return error_answer(request, 400, "UnknownOperationException", f"{what} is not part of this endpoint.")


# fmt: off
_S3_LACKS = frozenset({
    "abac", "analytics", "intelligent-tiering", "inventory", "metadataAnnotationTable", "metadataConfiguration",
    "metadataInventoryTable", "metadataJournalTable", "metadataTable", "metrics", "policyStatus", "renameObject",
    "requestPayment", "select", "session", "torrent",
})
# fmt: on


def s3_lacks(request: Request, bucket: str | None) -> str | None:
    """What MiniStack overlooks in a request, to do something else: with `?inventory`, DELETE deletes the bucket."""
    if not request.query:
        return None
    asked = {name for name, _ in parse_qsl(request.query, keep_blank_values=True)}
    if lacking := asked & _S3_LACKS:
        return min(lacking)
    key = request.path.strip("/") if bucket else request.path.strip("/").partition("/")[2]
    return "encryption of an object" if key and "encryption" in asked else None


def error_answer(request: Request, status: int, code: str, message: str) -> Answer:
    """In the form of the protocol that the request speaks."""
    request_id = str(uuid.uuid4())
    form = _form_of(request)
    headers = {"content-type": _CONTENT_TYPES[form], "x-amzn-requestid": request_id}
    xml = f"<Code>{code}</Code><Message>{escape(message)}</Message>"
    tail = f"<RequestId>{request_id}</RequestId>"
    if form == "json":
        headers["x-amzn-errortype"] = code
        body = json.dumps({"__type": code, "message": message}).encode()
    elif form == "cbor":
        headers["smithy-protocol"] = "rpc-v2-cbor"
        body = b"\xa2" + b"".join(_cbor_text(text) for text in ("__type", code, "message", message))
    elif form == "query":
        kind = "Sender" if status < 500 else "Receiver"
        body = f"<ErrorResponse><Error><Type>{kind}</Type>{xml}</Error>{tail}</ErrorResponse>".encode()
    else:
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{xml}{tail}</Error>'.encode()
    return PlainAnswer(status, headers, b"" if request.method == "HEAD" else body)


_Form = Literal["json", "cbor", "query", "s3"]
_CONTENT_TYPES: dict[_Form, str] = {
    "json": "application/x-amz-json-1.1",
    "cbor": "application/cbor",
    "query": "text/xml",
    "s3": "application/xml",
}


def _form_of(request: Request) -> _Form:
    headers = request.headers
    if headers.get("smithy-protocol") == "rpc-v2-cbor":
        return "cbor"
    service = service_of(request.path, headers, request.query)
    if headers.get("content-type", "").startswith("application/x-www-form-urlencoded") or service in _XML_SERVICES:
        return "query"
    if "x-amz-target" in headers or service not in ("s3", ""):
        return "json"
    return "s3"


def _cbor_text(text: str) -> bytes:
    """RFC 8949, 3.1: major type 3, with a length of two bytes."""
    data = text.encode()[:0xFFFF]
    return b"\x79" + len(data).to_bytes(2) + data
