"""Locations on S3, in the forms that SageMaker takes."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

_HOST = re.compile(r"(?:(?P<bucket>.+)\.)?s3(?:[.-](?:dualstack\.)?[a-z0-9-]+)?\.amazonaws\.com(?:\.cn)?")


def parse_location(location: str, *, of_prefix: bool = False) -> tuple[str, str]:
    """Return the bucket and key of an s3:// or https:// location, by virtual host or path. Raises ValueError.

    An https:// location is a URL, so its path is percent-decoded; what follows s3://BUCKET/ is the key as it stands.
    Only a prefix may be empty (`of_prefix`): the whole bucket.
    """
    if location.startswith("s3://"):
        bucket, _, key = location.removeprefix("s3://").partition("/")
    else:
        parts = urlsplit(location)
        host = _HOST.fullmatch(parts.hostname or "")
        if parts.scheme != "https" or host is None or parts.query or parts.fragment:
            raise ValueError(f"{location} is not a location on S3")
        bucket, key = host["bucket"] or "", unquote(parts.path).removeprefix("/")
        if not bucket:
            bucket, _, key = key.partition("/")
    if not bucket or not (key or of_prefix):
        raise ValueError(f"{location} does not name an object")
    return bucket, key
