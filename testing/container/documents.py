"""Documents read as SageMaker's path reads them, and their answers as JSON values."""

from __future__ import annotations

import json
from typing import Any

from container.core import Call, Result
from container.dialects.document import RequestHead, read_call


def read_document(content_type: str | None, body: bytes, attributes: str | None = None) -> Call:
    return read_call(RequestHead.parse("invocations", content_type, attributes), body)


def rendered(call: Call, *results: Result) -> Any:
    return json.loads(call.render(results, "served"))
