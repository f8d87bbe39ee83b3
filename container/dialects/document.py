"""Which dialect a document is in: told by its content type, then by its shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from container.dialects import huggingface, openai, plain_text
from container.dialects.call import Call
from container.dialects.wire import decode
from container.errors import InvalidRequest, UnsupportedMedia

JSON_LINES = frozenset({"application/jsonlines", "application/x-ndjson", "application/jsonl"})
# Clients that say nothing: SageMaker and S3 then fill in a stream of bytes.
UNSAID = frozenset({"", "application/octet-stream", "binary/octet-stream"})
CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})
ACCEPTED = "application/json, application/jsonlines (one JSON object a line) and text/plain are, in UTF-8"

SHAPES: dict[str, Callable[[object], Call]] = {
    "inputs": huggingface.read_request,
    "messages": openai.read_chat,
    "prompt": openai.read_completion,
}


Route = Literal["invocations", "chat", "completions"]
"""Where a document came in: SageMaker's path takes every dialect, OpenAI's paths one each."""


def read_call(route: Route, content_type: str | None, body: bytes, custom_attributes: str | None) -> Call:
    """The call that one document makes. Takes as long as the body is large: for a worker thread.

    Raises InvalidRequest, or UnsupportedMedia for a content type of no dialect, JSON lines included.
    """
    match route:
        case "invocations":
            return read_document(content_type, body, custom_attributes)
        case "chat":
            return openai.read_chat(decode(body))
        case "completions":
            return openai.read_completion(decode(body))


def is_json_lines(content_type: str | None) -> bool:
    """Whether the body is to be read line by line, with `batch.read_line`."""
    return media_type(content_type) in JSON_LINES


def read_document(content_type: str | None, body: bytes, custom_attributes: str | None) -> Call:
    """A document whose dialect its content type and its shape tell."""
    media = media_type(content_type)
    check_charset(content_type)
    if media == "text/plain":
        return plain_text.read_prompt(body, custom_attributes)
    if media == "application/json" or media.endswith("+json") or media in UNSAID:
        return read_object(decode(body))
    raise UnsupportedMedia(f"this content type is not supported; {ACCEPTED}")


def check_charset(content_type: str | None) -> None:
    """Raises UnsupportedMedia where a content type names a charset that we don't read."""
    parameters = (part.strip().lower() for part in (content_type or "").split(";")[1:])
    charsets = [part.removeprefix("charset=").strip('"') for part in parameters if part.startswith("charset=")]
    if not CHARSETS.issuperset(charsets):
        raise UnsupportedMedia(f"this charset is not supported; {ACCEPTED}")


def media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def read_object(document: object) -> Call:
    """The call of a JSON object whose dialect shows in its shape."""
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
