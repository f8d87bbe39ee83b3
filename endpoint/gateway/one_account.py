"""The endpoint's one account: what clients sign with is made to stand for it before a request goes to the backend.

Emulators take an account from the access key: one of twelve digits is its number, and the key of a session has the
account of the role that was assumed. Buckets, queues and topics made with such keys would be another account's than the
endpoint's, which could not reach them. Signatures aren't checked, so the key can be changed.
"""

from __future__ import annotations

import re

_VERSION_4 = re.compile(r"(?P<before>Credential=)(?P<key>[^/,\s]+)")
_VERSION_2 = re.compile(r"(?P<before>^AWS )(?P<key>[^:]+)(?=:)")
_PRESIGNED = re.compile(
    r"(?P<before>(?:^|&)(?:X-Amz-Credential|AWSAccessKeyId)=)(?P<key>[^&]*?)(?=/|%2F|&|$)", re.IGNORECASE
)
_OF_USER = re.compile(r"AKIA[A-Z0-9]{12,124}")
_OF_SESSION = re.compile(r"ASIA[A-Z0-9]{12,124}")


def sign_header_for(account: str, service: str, authorization: str) -> str:
    """Return an Authorization header for `service` with an access key that stands for `account`."""
    return _replace(_VERSION_2, _replace(_VERSION_4, authorization, service, account), service, account)


def sign_query_for(account: str, service: str, query: str) -> str:
    """Return a query string, that of a presigned URL, say, with an access key that stands for `account`."""
    return _replace(_PRESIGNED, query, service, account)


def _replace(pattern: re.Pattern[str], text: str, service: str, account: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        # These tell who the caller is: users to IAM and STS, sessions to STS alone.
        is_user = service in ("iam", "sts") and _OF_USER.fullmatch(match["key"])
        is_session = service == "sts" and _OF_SESSION.fullmatch(match["key"])
        return match[0] if is_user or is_session else f"{match['before']}{account}"

    return pattern.sub(replaced, text)
