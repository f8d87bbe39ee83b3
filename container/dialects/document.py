"""Headers that say how a body is to be read, and the dialect of a document: by its content type, then by its shape."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from container.core import Call
from container.dialects import huggingface, plain_text
from container.dialects.chat import read_chat
from container.dialects.completions import read_completion
from container.dialects.huggingface import ScalarOptions
from container.dialects.plain_text import PREFIX
from container.dialects.wire import decode
from container.errors import InvalidRequest, UnsupportedMedia

JSON_LINES = frozenset({"application/jsonlines", "application/x-ndjson", "application/jsonl"})
JSON_LINES_ALIASES = frozenset(
    {
        "application/json-lines",
        "application/ndjson",
        "application/x-jsonl",
        "application/x-jsonlines",
        "application/x-json-lines",
        "text/jsonl",
        "text/jsonlines",
        "text/ndjson",
        "text/x-jsonl",
        "text/x-jsonlines",
        "text/x-ndjson",
    }
)
"""Names that are registered nowhere, and that tools write all the same."""
UNSPECIFIED = frozenset(
    {
        "",
        "application/octet-stream",
        "binary/octet-stream",
        "application/gzip",
        "application/x-gzip",
        "application/zstd",
    }
)
"""Content types of clients that give none, for which SageMaker and S3 fill in a stream of bytes, and of compressed
files, whose type does not say what is in them."""
CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})
ACCEPTED = "application/json, application/jsonlines (one JSON object a line) and text/plain are, in UTF-8"
MAX_TIMEOUT_S = 3600
"""SageMaker's own limit of `InvocationTimeoutSeconds`."""
EXPECTED_TIMEOUT = f"a number of seconds from 1 to {MAX_TIMEOUT_S}, such as timeout=1800"
EXPECTED_JOB = "a name of 1 to 128 letters, digits, dots, underscores and hyphens"

DIGEST_FORMAT = b"longhaul 1"
"""Version of what digests are made of. It changes where the same seed gives other tokens, or items are numbered in
another way."""

SHAPES: dict[str, Callable[[object], Call]] = {
    "inputs": huggingface.read_request,
    "messages": read_chat,
    "prompt": read_completion,
}

Route = Literal["invocations", "chat", "completions"]
"""Path of a request: SageMaker's takes every dialect, OpenAI's take one each."""


class RequestHead(msgspec.Struct, frozen=True, kw_only=True, tag="document"):
    """Everything that a request's route and headers say about it, parsed once."""

    route: Route
    media_type: str
    """The content type without its parameters, in lower case."""
    is_utf8: bool = True
    """False if the content type names a charset that we don't read."""
    attributes: dict[str, list[str]] = {}
    """Values of each key of the custom attributes, `max_new_tokens=64;job=my-job`, without the space around them.

    SageMaker allows 1,024 visible ASCII characters in any form. Teams put their own tokens there, so parts that are not
    pairs are skipped, and unknown keys have no effect.
    """
    job: str | None = None
    """Name under which the request can be sent again and resumed."""
    timeout_s: float | None = None
    """Seconds from the request's arrival until the caller gives up, if it says so."""

    @property
    def is_json_lines(self) -> bool:
        return self.media_type in JSON_LINES or self.media_type in JSON_LINES_ALIASES

    @classmethod
    def parse(cls, route: Route, content_type: str | None, custom_attributes: str | None) -> RequestHead:
        """Parse the headers. Raises InvalidRequest if the job's name or the timeout is malformed."""
        media_type, *parameters = (part.strip().lower() for part in (content_type or "").split(";"))
        charsets = [part.removeprefix("charset=").strip('"') for part in parameters if part.startswith("charset=")]
        attributes: dict[str, list[str]] = {}
        for part in (custom_attributes or "").split(";"):
            key, equals, value = part.partition("=")
            if equals:
                attributes.setdefault(key.strip(), []).append(value.strip())
        timeout_s = _value(
            attributes,
            "timeout",
            lambda text: re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,6})?", text) and 1 <= float(text) <= MAX_TIMEOUT_S,
            EXPECTED_TIMEOUT,
        )
        return cls(
            route=route,
            media_type=media_type,
            is_utf8=CHARSETS.issuperset(charsets),
            attributes=attributes,
            job=_value(attributes, "job", re.compile(r"[A-Za-z0-9._-]{1,128}").fullmatch, EXPECTED_JOB),
            timeout_s=None if timeout_s is None else float(timeout_s),
        )


def read_call(head: RequestHead, body: bytes) -> Call:
    """Read one document. Its size decides how long this takes, so call it in a worker thread.

    Raises InvalidRequest, or UnsupportedMedia if no dialect has the content type, which JSON lines are not for either.
    """
    match head.route:
        case "chat":
            return read_chat(decode(body))
        case "completions":
            return read_completion(decode(body))
    validate_charset(head)
    if head.media_type == "text/plain":
        return plain_text.read_prompt(body, head.attributes)
    if head.media_type == "application/json" or head.media_type.endswith("+json") or head.media_type in UNSPECIFIED:
        return read_object(decode(body))
    raise UnsupportedMedia(f"this content type is not supported; {ACCEPTED}")


def validate_charset(head: RequestHead) -> None:
    """Raise UnsupportedMedia if the content type names a charset that we don't read."""
    if not head.is_utf8:
        raise UnsupportedMedia(f"this charset is not supported; {ACCEPTED}")


def read_object(document: object) -> Call:
    """Read a JSON object whose shape tells its dialect."""
    if not isinstance(document, dict):
        raise InvalidRequest("the document must be a JSON object with inputs, messages or prompt")
    shapes = [name for name in SHAPES if document.get(name) is not None]
    if len(shapes) != 1:
        found = f"has {' and '.join(shapes)}" if shapes else "has none of them"
        raise InvalidRequest(
            "the document must have exactly one of inputs (Hugging Face), messages (OpenAI chat) and prompt"
            f" (OpenAI completions); it {found}",
            param=shapes[1] if shapes else None,
        )
    return SHAPES[shapes[0]](document)


def _value(
    attributes: Mapping[str, Sequence[str]], key: str, is_valid: Callable[[str], object], expected: str
) -> str | None:
    """Return the value of a key, or None without one. Raises InvalidRequest, which says what was expected."""
    if key not in attributes:
        return None
    value = plain_text.single_value(attributes, key)
    if not is_valid(value):
        raise InvalidRequest(f"{PREFIX}{key} must be {expected}", param=f"{PREFIX}{key}")
    return value


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
