"""Messages between server and reader: msgpack structs, framed by `processes/framing.py`.

The server asks, the reader answers each question once, in order.
"""

from __future__ import annotations

from array import array

import msgspec

from container.core import Completion, Constants, DeadlineReason
from container.dialects.batch import Form
from container.dialects.document import RequestHead
from container.errors import ErrorType, OutOfSpace, RequestError, TooLarge
from container.tokenization.preparer import Prepared


class ReaderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Values that a reader needs of the server. Lengths are in tokens."""

    model_dir: str
    trust_remote_code: bool
    parses_control_tokens: bool = False
    max_sequence_tokens: int
    default_max_new_tokens: int
    name: str
    """Name of the served model."""
    deadline_reason: DeadlineReason = "deadline"


class ReadLine(msgspec.Struct, frozen=True, tag="line"):
    """A document that is line `number` of JSON lines: `size` bytes of the body from `offset` on."""

    number: int
    offset: int
    size: int


class Load(msgspec.Struct, frozen=True, tag="load"):
    """The first message: get ready, without looking at the document."""

    config: ReaderConfig


class Open(msgspec.Struct, frozen=True, tag="open"):
    """The second message: read the document."""

    source: RequestHead | ReadLine
    """A request's head if the whole body is its document."""
    constants: Constants
    line: int = 0
    """Index of the line in its batch, from 0: together with `constants` it decides the seeds of the items."""


class Get(msgspec.Struct, frozen=True, tag="get"):
    """Send the prepared item `index`, without its text."""

    index: int


class Put(msgspec.Struct, frozen=True, tag="put"):
    """Take one more completion of item `index`, whose completions come in order."""

    index: int
    completion: Completion


class Render(msgspec.Struct, frozen=True, tag="render"):
    """Write the answer: all completions are there, or the document is a line that failed with this error."""

    error: Failure | None = None


ToReader = Load | Open | Get | Put | Render


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """A RequestError."""

    status: int
    kind: ErrorType
    message: str
    param: str | None
    code: str

    @classmethod
    def of(cls, error: RequestError) -> Failure:
        return cls(error.status, error.type, error.message, error.param, error.code)

    def error(self) -> RequestError:
        error_type = OutOfSpace if self.status == OutOfSpace.status else RequestError
        error = error_type(self.message, param=self.param, code=self.code)
        error.status, error.type = self.status, self.kind
        return error


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """Last message of a reader that ends on an unexpected error, told without any text of the document."""

    cause: str


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The document is well-formed, and every item fits. A line may already be an error."""

    items: int
    form: Form = "bare"
    custom_id: str | None = None
    error: Failure | None = None


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The question was carried out, and has no answer."""


class Rendered(msgspec.Struct, frozen=True, tag="rendered"):
    """The answer's file holds the whole answer."""

    size: int
    content_type: str


ToServer = Opened | Failure | Broken | Prepared | Done | Rendered


def too_much_memory() -> TooLarge:
    """Return the error of a document that its reader has no memory for."""
    message = "the document takes too much memory to read; send JSON lines (application/jsonlines) with smaller items"
    return TooLarge(message, code="document_too_complex")


to_reader = msgspec.msgpack.Decoder(ToReader)
to_server = msgspec.msgpack.Decoder(ToServer, dec_hook=lambda _, ids: array("I", ids))
