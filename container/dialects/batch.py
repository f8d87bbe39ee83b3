"""Batches: JSON lines, a line an item, each answered by one line in its own form.

The forms are OpenAI's Batch (`custom_id`, `method`, `url`, `body`), Amazon Bedrock's batch inference (`recordId`,
`modelInput`) and a bare document of a JSON dialect. A bad line fails alone. Cutting a body into lines is the caller's.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
from pydantic import Field

from container.core import Call, Result
from container.dialects import openai
from container.dialects.document import read_object
from container.dialects.wire import BYTE_ORDER_MARK, Wire, decode, read
from container.errors import InvalidRequest, RequestError

Form = Literal["openai", "bedrock", "bare"]

ROUTES: dict[str, Callable[[object], Call]] = {
    "/v1/chat/completions": openai.read_chat,
    "/v1/completions": openai.read_completion,
}


class OpenAIRequest(Wire):
    custom_id: str = Field(min_length=1, description="a string of at least one character")
    method: Literal["POST"] = Field(description='"POST"')
    url: Literal["/v1/chat/completions", "/v1/completions"] = Field(description=f"one of {', '.join(ROUTES)}")
    body: Any = Field(description="a JSON object")


class BedrockRequest(Wire):
    recordId: str | None = Field(None, description="a string")
    modelInput: Any = Field(description="a JSON object")


class _Echo(msgspec.Struct):
    """A Bedrock line's input as it was written, so that the answer repeats its numbers digit for digit."""

    modelInput: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Head(msgspec.Struct):
    """The members that tell a line's form, unread."""

    custom_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    method: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    url: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    recordId: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    modelInput: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


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
        """The name that no other line may have: OpenAI's, which is how its clients find an answer."""
        return self.custom_id if self.form == "openai" else None

    def failed(self, error: RequestError) -> Line:
        """The same line, as an error. Of the error's past, which holds on to the document, nothing is kept."""
        return replace(self, call=None, error=error.with_traceback(None))

    def success(self, results: Sequence[Result], model: str) -> bytes:
        """The answer's line, newline included."""
        assert self.call is not None
        return self._line(msgspec.Raw(self.call.render(results, model)), None)

    def failure(self, error: RequestError) -> bytes:
        """The error's line, newline included."""
        return self._line(None, error)

    def _line(self, output: Any, error: RequestError | None) -> bytes:
        match self.form:
            case "openai":
                document = self._openai(output, error)
            case "bedrock":
                document = self._bedrock(output, error)
            case "bare":
                document = output if error is None else error.body()
        return msgspec.json.encode(document) + b"\n"

    def _openai(self, output: Any, error: RequestError | None) -> dict[str, Any]:
        response = {
            "status_code": error.status if error else 200,
            "request_id": secrets.token_hex(16),
            "body": error.body() if error else output,
        }
        return {
            "id": f"batch_req_{secrets.token_hex(12)}",
            "custom_id": self.custom_id,
            "response": response,
            "error": {"code": error.code, "message": error.message} if error else None,
        }

    def _bedrock(self, output: Any, error: RequestError | None) -> dict[str, Any]:
        echo = None if self.model_input is None else msgspec.Raw(self.model_input)
        record = {"recordId": self.custom_id, "modelInput": echo}
        if error is None:
            return record | {"modelOutput": output}
        return record | {"error": {"errorCode": error.status, "errorMessage": error.message}}


def is_blank(line: bytes) -> bool:
    """Whether a line is no item: a reader of lines skips it."""
    return not line.removeprefix(BYTE_ORDER_MARK).strip()


def read_line(line: bytes, number: int) -> Line:
    """Line `number`, counted from 1, with or without its newline. A bad line is a Line with an error."""
    named = Line(form="bare")
    try:
        document = _document(line, number)
        named = _named(document, line, number)
        return replace(named, call=_call(named.form, document))
    except RequestError as error:
        return named.failed(error)


def name_line(line: bytes, number: int) -> Line:
    """A line that is not to run: its form and its name only, or the error of one that is no line at all."""
    try:
        return _named(_document(line, number), line, number)
    except RequestError as error:
        return Line(form="bare").failed(error)


def name_long_line(line: bytes, number: int) -> Line:
    """As `name_line`, of one so long that its values are not to be looked at: its input is not repeated, either."""
    try:
        head = msgspec.json.decode(line.removeprefix(BYTE_ORDER_MARK), type=_Head)
        names = {name for name in head.__struct_fields__ if getattr(head, name) is not msgspec.UNSET}
        form = _form(names)
        value = {"openai": head.custom_id, "bedrock": head.recordId, "bare": msgspec.UNSET}[form]
        name = None if value is msgspec.UNSET else _name(msgspec.json.decode(value))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Line(form="bare")
    return Line(form=form, custom_id=name or _made_up(number) if form == "bedrock" else name)


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
        custom_id=_name(document.get("recordId")) or _made_up(number),
        # A line may hold other white space, but an answer's line must have no line break of any kind.
        model_input=None if echo is msgspec.UNSET else msgspec.json.format(bytes(echo), indent=-1),
    )


def _made_up(number: int) -> str:
    """Bedrock, too, makes up an id of 11 characters for a line without one."""
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
    """The caller's name for a line, so far as it is one: a bad line, too, is answered under its name."""
    return value if isinstance(value, str) else None
