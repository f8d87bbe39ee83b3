"""The backend as most modules see it: boto3's clients, and whether an error of theirs is worth another attempt."""

from __future__ import annotations

from typing import Any, Protocol

from botocore.exceptions import ClientError, ParamValidationError

_ONCE_MORE = ("Throttl", "RequestLimit", "TooManyRequests", "RequestTimeout", "KMSThrottling")


class Clients(Protocol):
    def client(self, service: str) -> Any: ...


def is_refusal(error: Exception) -> bool:
    """Return whether the same call would fail again: an unknown topic, say, but not a backend that is down or busy."""
    if isinstance(error, ParamValidationError):
        return True
    if not isinstance(error, ClientError):
        return False
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    code = str(error.response.get("Error", {}).get("Code", ""))
    return 400 <= status < 500 and status not in (408, 429) and not code.startswith(_ONCE_MORE)
