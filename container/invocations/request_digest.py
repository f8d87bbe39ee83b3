"""Request digest: equal for two requests that ask the same of the same model."""

from __future__ import annotations

import hashlib

from container.dialects.document import RequestHead
from container.dialects.huggingface import ScalarOptions

DIGEST_FORMAT = b"longhaul 1"
"""Version of what digests are made of. It changes where the same seed gives other tokens, or items are numbered in
another way."""


class RequestDigest:
    """Digest of one request, whose body is added as it comes. It does not reveal what the request says.

    `identity` is the server's part: its model and its settings, so far as they decide what is generated.
    """

    def __init__(self, identity: str, head: RequestHead) -> None:
        digest = hashlib.sha256(DIGEST_FORMAT)
        parts = [identity, head.route, head.media_type]
        if head.media_type == "text/plain":  # only there do attributes say how to generate
            for key in sorted(head.attributes.keys() & ScalarOptions.model_fields.keys()):
                parts += [f"{key}={value}" for value in sorted(head.attributes[key])]
        for part in parts:
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8) + encoded)
        self.add = digest.update
        """Adds a piece of the body. A large piece is for a worker thread."""
        self.hexdigest = digest.hexdigest
