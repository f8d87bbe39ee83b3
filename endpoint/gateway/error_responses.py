"""AWS's form of an error, for each protocol that its clients speak: what they need to raise the right exception."""

from __future__ import annotations

import json
import uuid
from typing import Literal
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

import cbor2
from starlette.responses import Response

from endpoint.gateway.request import Request

_Protocol = Literal["json", "cbor", "query", "s3"]
_CONTENT_TYPES: dict[_Protocol, str] = {
    "json": "application/x-amz-json-1.1",
    "cbor": "application/cbor",
    "query": "text/xml",
    "s3": "application/xml",
}
_XML_SERVICES = frozenset({"cloudfront", "route53"})
# fmt: off
_S3_GAPS = frozenset({
    "abac", "analytics", "intelligent-tiering", "inventory", "metadataAnnotationTable", "metadataConfiguration",
    "metadataInventoryTable", "metadataJournalTable", "metadataTable", "metrics", "policyStatus", "renameObject",
    "requestPayment", "select", "session", "torrent",
})
# fmt: on


def error_response(request: Request, status: int, code: str, message: str) -> Response:
    """Return an error in the form of the protocol that the request speaks."""
    request_id = str(uuid.uuid4())
    protocol = _protocol_of(request)
    headers = {"content-type": _CONTENT_TYPES[protocol], "x-amzn-requestid": request_id}
    xml = f"<Code>{code}</Code><Message>{escape(message)}</Message>"
    tail = f"<RequestId>{request_id}</RequestId>"
    if protocol == "json":
        headers["x-amzn-errortype"] = code
        body = json.dumps({"__type": code, "message": message}).encode()
    elif protocol == "cbor":
        headers["smithy-protocol"] = "rpc-v2-cbor"
        body = cbor2.dumps({"__type": code, "message": message})
    elif protocol == "query":
        kind = "Sender" if status < 500 else "Receiver"
        body = f"<ErrorResponse><Error><Type>{kind}</Type>{xml}</Error>{tail}</ErrorResponse>".encode()
    else:
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{xml}{tail}</Error>'.encode()
    return Response(b"" if request.method == "HEAD" else body, status, headers)


def not_implemented(request: Request, subject: str) -> Response:
    """Return the error that says that neither this endpoint nor its backend has `subject`."""
    status, code = 400, "UnknownOperationException"
    match _protocol_of(request):
        case "query":
            code = "InvalidAction"
        case "s3":
            status, code = 501, "NotImplemented"
    return error_response(request, status, code, f"{subject} is not part of this endpoint.")


def gap_in_s3(request: Request) -> str | None:
    """Return what MiniStack would overlook in a request: with `?inventory`, say, DELETE deletes the bucket."""
    if not request.query:
        return None
    names = {name for name, _ in parse_qsl(request.query, keep_blank_values=True)}
    if gaps := names & _S3_GAPS:
        return min(gaps)
    key = request.path.strip("/") if request.bucket else request.path.strip("/").partition("/")[2]
    return "encryption of an object" if key and "encryption" in names else None


def _protocol_of(request: Request) -> _Protocol:
    headers = request.headers
    if headers.get("smithy-protocol") == "rpc-v2-cbor":
        return "cbor"
    is_form = headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    if is_form or request.service in _XML_SERVICES:
        return "query"
    if "x-amz-target" in headers or request.service not in ("s3", ""):
        return "json"
    return "s3"
