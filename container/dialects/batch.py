"""Batches: JSON lines, a line an item, each answered by one line in its own form.

The forms are OpenAI's Batch (`custom_id`, `method`, `url`, `body`), Amazon Bedrock's batch inference (`recordId`,
`modelInput`) and a bare document of a JSON dialect. A bad line fails alone. Cutting a body into lines is the caller's.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from pydantic import Field

from container.core import Call, Result
from container.dialects.chat import read_chat
from container.dialects.completions import read_completion
from container.dialects.document import read_object
from container.dialects.encoding import encode
from container.dialects.torn_line import read_members
from container.dialects.wire import BYTE_ORDER_MARK, Wire, decode, read
from container.errors import InvalidRequest, RequestError

Form = Literal["openai", "bedrock", "bare"]
_LINE = re.compile(r"line [0-9]+")
_SURROGATE = re.compile("[\ud800-\udfff]")

ROUTES: dict[str, Callable[[object], Call]] = {
    "/v1/chat/completions": read_chat,
    "/v1/completions": read_completion,
}


class OpenAIRequest(Wire):
    custom_id: str = Field(min_length=1, description="a string of at least one character")
    method: Literal["POST"] = Field(description='"POST"')
    url: Literal["/v1/chat/completions", "/v1/completions"] = Field(description=f"one of {', '.join(ROUTES)}")
    body: Any = Field(description="a JSON object")


class BedrockRequest(Wire):
    recordId: str | None = Field(None, description="a string")
    modelInput: Any = Field(description="a JSON object")


class OpenAIResponse(Struct, forbid_unknown_fields=True):
    status_code: int
    request_id: str
    body: Raw


class OpenAIError(Struct, forbid_unknown_fields=True):
    code: str
    message: str


class OpenAILine(Struct, forbid_unknown_fields=True):
    id: str
    custom_id: str | None
    response: OpenAIResponse
    error: OpenAIError | None


class BedrockError(Struct, forbid_unknown_fields=True):
    errorCode: int
    errorMessage: str


class BedrockResult(Struct, forbid_unknown_fields=True):
    recordId: str
    modelInput: Raw | None
    modelOutput: Raw


class BedrockFailure(Struct, forbid_unknown_fields=True):
    recordId: str
    modelInput: Raw | None
    error: BedrockError


class _Echo(Struct):
    """A Bedrock line's input as it was written, so that the answer repeats its numbers digit for digit."""

    modelInput: Raw | UnsetType = UNSET


class _Head(Struct):
    """The members that tell a line's form, undecoded."""

    custom_id: Raw | UnsetType = UNSET
    method: Raw | UnsetType = UNSET
    url: Raw | UnsetType = UNSET
    body: Raw | UnsetType = UNSET
    recordId: Raw | UnsetType = UNSET
    modelInput: Raw | UnsetType = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a batch: a call, or the error that it already is."""

    form: Form
    call: Call | None = None
    error: RequestError | None = None
    custom_id: str | None = None
    """The caller's own name for the line: OpenAI's `custom_id`, Bedrock's `recordId`."""
    model_input: bytes | None = None
    """Bedrock's `modelInput`, to be repeated in the answer."""

    @property
    def unique_id(self) -> str | None:
        """The name that no other line may have: OpenAI's, by which its clients find an answer."""
        return self.custom_id if self.form == "openai" else None

    def failed(self, error: RequestError) -> Line:
        """Return the same line as an error. The error's traceback, which holds on to the document, is dropped."""
        return replace(self, call=None, error=error.with_traceback(None))

    def success(self, results: Sequence[Result], model: str) -> bytes:
        """Return the answer's line, newline included."""
        assert self.call is not None
        return self._line(Raw(self.call.render(results, model)), None)

    def failure(self, error: RequestError) -> bytes:
        """Return the error's line, newline included."""
        return self._line(Raw(encode(error.body())), error)

    def _line(self, output: Raw, error: RequestError | None) -> bytes:
        line: Struct | Raw = output
        if self.form == "openai":
            response = OpenAIResponse(error.status if error else 200, secrets.token_hex(16), output)
            failure = OpenAIError(error.code, error.message) if error else None
            line = OpenAILine(f"batch_req_{secrets.token_hex(12)}", self.custom_id, response, failure)
        elif self.form == "bedrock":
            assert self.custom_id is not None, "a line without a recordId has a made-up one"
            model_input = None if self.model_input is None else Raw(self.model_input)
            line = BedrockResult(self.custom_id, model_input, output)
            if error is not None:
                line = BedrockFailure(self.custom_id, model_input, BedrockError(error.status, error.message))
        return encode(line) + b"\n"


def is_blank(line: bytes) -> bool:
    """Whether a line has no item, so that a reader of lines skips it."""
    return not line.removeprefix(BYTE_ORDER_MARK).strip()


def is_unread(param: str | None) -> bool:
    """Return whether an error with this `param` says that a line can't be read at all: then it names no field."""
    return param is not None and _LINE.fullmatch(param) is not None


def read_line(line: bytes, number: int) -> Line:
    """Read line `number`, counted from 1, with or without its newline. A bad line is a Line with an error."""
    named: Line | None = None
    try:
        document = _document(line, number)
        named = _named(document, line, number)
        return replace(named, call=_call(named.form, document))
    except RequestError as error:
        return (named or name_torn_line(line)).failed(error)


def name_line(line: bytes, number: int) -> Line:
    """Read only the form and the name of a line that is not to run. A bad line is a Line with an error."""
    try:
        return _named(_document(line, number), line, number)
    except RequestError as error:
        return name_torn_line(line).failed(error)


def name_long_line(line: bytes, number: int) -> Line:
    """Do as `name_line` for a line too long to have its values decoded. Its input is not repeated, either."""
    try:
        head = msgspec.json.decode(line.removeprefix(BYTE_ORDER_MARK), type=_Head)
        names = {name for name in head.__struct_fields__ if getattr(head, name) is not UNSET}
        form = _form(names)
        value = {"openai": head.custom_id, "bedrock": head.recordId, "bare": UNSET}[form]
        name = None if value is UNSET else _name(msgspec.json.decode(value))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return name_torn_line(line)
    return Line(form=form, custom_id=name or _made_up_id(number) if form == "bedrock" else name)


def _document(line: bytes, number: int) -> dict[str, Any]:
    name = f"line {number}"
    document = decode(line, what=name, param=name)
    if not isinstance(document, dict):
        raise InvalidRequest(f"{name} must be a JSON object", param=name)
    return document


def _form(names: Set[str]) -> Form:
    if names & BedrockRequest.model_fields.keys():
        return "bedrock"
    return "openai" if names & OpenAIRequest.model_fields.keys() else "bare"


def _named(document: dict[str, Any], line: bytes, number: int) -> Line:
    form = _form(document.keys())
    if form == "openai":
        return Line(form=form, custom_id=_name(document.get("custom_id")))
    if form == "bare":
        return Line(form=form)
    echo = msgspec.json.decode(line.removeprefix(BYTE_ORDER_MARK), type=_Echo).modelInput
    return Line(
        form=form,
        custom_id=_name(document.get("recordId")) or _made_up_id(number),
        # A line may hold other white space, but an answer's line must have no line break of any kind.
        model_input=None if echo is UNSET else msgspec.json.format(bytes(echo), indent=-1),
    )


def name_torn_line(line: bytes) -> Line:
    """Name a line that isn't JSON, or only the beginning of one, as far as it can be read."""
    members = read_members(line)
    form = _form(members.keys())
    name = _name(members.get("recordId" if form == "bedrock" else "custom_id"))
    if name is None or _SURROGATE.search(name):  # half a character, or bytes that are no UTF-8
        return Line(form="bare")
    return Line(form=form, custom_id=name)


def _made_up_id(number: int) -> str:
    """Return the id of a line without one: 11 characters, as Bedrock makes it up."""
    return f"LINE{number:07d}"


def _call(form: Form, document: dict[str, Any]) -> Call:
    match form:
        case "openai":
            request = read(OpenAIRequest, document)
            return ROUTES[request.url](_object(request.body, "body"))
        case "bedrock":
            return read_object(_object(read(BedrockRequest, document).modelInput, "modelInput"))
        case "bare":
            return read_object(document)


def _object(value: object, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param} must be a JSON object", param=param)
    return value


def _name(value: object) -> str | None:
    """Return the caller's name for a line if it is a string: a bad line, too, is answered under its name."""
    return value if isinstance(value, str) else None
