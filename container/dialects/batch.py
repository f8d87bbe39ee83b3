"""Batches: JSON lines, a line an item, each answered by one line in its own form.

The forms are OpenAI's Batch (`custom_id`, `method`, `url`, `body`; Azure has other URLs, Mistral and Together neither
URL nor method), Anthropic's message batches (`custom_id`, `params`), Amazon Bedrock's batch inference (`recordId`,
`modelInput`) and a bare document of a JSON dialect. A bad line fails alone. Cutting a body into lines is the caller's.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from pydantic import Field

from container.core import Call, DeadlineReason, Result
from container.dialects import anthropic
from container.dialects.chat import read_chat
from container.dialects.completions import read_completion
from container.dialects.document import read_object
from container.dialects.encoding import encode
from container.dialects.torn_line import read_members
from container.dialects.wire import BYTE_ORDER_MARK, Wire, decode, read
from container.errors import InvalidRequest, RequestError

Form = Literal["openai", "anthropic", "bedrock", "bare"]
_LINE = re.compile(r"line [0-9]+")
_SURROGATE = re.compile("[\ud800-\udfff]")

URL = r"^([^?#\s]*/)?(chat/)?completions/?([?#]\S*)?$"
"""URLs of the two routes: OpenAI's own, Azure's with a deployment or without, with a host and a query or without."""


class OpenAIRequest(Wire):
    custom_id: str = Field(min_length=1, description="a string of at least one character")
    method: Literal["POST"] | None = Field(None, description='"POST"')
    url: str | None = Field(None, pattern=URL, description="a path that ends in /chat/completions or /completions")
    body: Any = Field(description="a JSON object")


class AnthropicRequest(Wire):
    custom_id: str = Field(min_length=1, description="a string of at least one character")
    params: Any = Field(description="a JSON object")


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
    params: Raw | UnsetType = UNSET
    recordId: Raw | UnsetType = UNSET
    modelInput: Raw | UnsetType = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a batch: a call, or the error that it already is."""

    form: Form
    call: Call | None = None
    error: RequestError | None = None
    custom_id: str | None = None
    """The caller's own name for the line: `custom_id`, or Bedrock's `recordId`."""
    model_input: bytes | None = None
    """Bedrock's `modelInput`, to be repeated in the answer."""

    @property
    def unique_id(self) -> str | None:
        """The name that no other line may have: the one by which OpenAI's and Anthropic's clients find an answer."""
        return self.custom_id if self.form in ("openai", "anthropic") else None

    def failed(self, error: RequestError) -> Line:
        """Return the same line as an error. The error's traceback, which holds on to the document, is dropped."""
        return replace(self, call=None, error=error.with_traceback(None))

    def success(self, results: Sequence[Result], model: str, deadline_reason: DeadlineReason = "deadline") -> bytes:
        """Return the answer's line, newline included."""
        assert self.call is not None
        return self._line(Raw(self.call.render(results, model, deadline_reason)), None)

    def failure(self, error: RequestError) -> bytes:
        """Return the error's line, newline included."""
        return self._line(Raw(encode(error.body())), error)

    def _line(self, output: Raw, error: RequestError | None) -> bytes:
        line: Struct | Raw = output
        if self.form == "openai":
            response = OpenAIResponse(error.status if error else 200, secrets.token_hex(16), output)
            failure = OpenAIError(error.code, error.message) if error else None
            line = OpenAILine(f"batch_req_{secrets.token_hex(12)}", self.custom_id, response, failure)
        elif self.form == "anthropic":
            result = anthropic.Succeeded(output) if error is None else anthropic.failed(error)
            line = anthropic.ResultLine(self.custom_id, result)
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
        values = {name: getattr(head, name) for name in head.__struct_fields__}
        form = _form({name for name, value in values.items() if value is not UNSET and bytes(value) != b"null"})
        value = {"bedrock": head.recordId, "bare": UNSET}.get(form, head.custom_id)
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
    """Tell a line's form by its names, but for those of nulls: tables written as lines have every column everywhere."""
    if names & BedrockRequest.model_fields.keys():
        return "bedrock"
    if "params" in names:
        return "anthropic"
    return "openai" if names & OpenAIRequest.model_fields.keys() else "bare"


def _named(document: dict[str, Any], line: bytes, number: int) -> Line:
    form = _form({name for name, value in document.items() if value is not None})
    if form in ("openai", "anthropic"):
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
            return _read_body(_object(request.body, "body"), request.url)
        case "anthropic":
            return anthropic.read_params(_object(read(AnthropicRequest, document).params, "params"))
        case "bedrock":
            model_input = _object(read(BedrockRequest, document).modelInput, "modelInput")
            is_anthropic = model_input.get("anthropic_version") is not None
            return anthropic.read_params(model_input) if is_anthropic else read_object(model_input)
        case "bare":
            return read_object(document)


def _read_body(body: dict[str, Any], url: str | None) -> Call:
    """Read the body of a line in OpenAI's form, whose shape tells its dialect where no URL does."""
    if url is None:
        return read_object(body)
    path = re.split("[?#]", url)[0].rstrip("/")
    return read_chat(body) if path.endswith("chat/completions") else read_completion(body)


def _object(value: object, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param} must be a JSON object", param=param)
    return value


def _name(value: object) -> str | None:
    """Return the caller's name for a line if it is a string: a bad line, too, is answered under its name."""
    return value if isinstance(value, str) else None
