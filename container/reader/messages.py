"""What edge and reader say to each other: msgpack structs, length-prefixed as between edge and engine. The edge asks,
the reader answers each question once, in order."""

from __future__ import annotations

import msgspec

from container.core import Completion, Seeds
from container.dialects.batch import Form
from container.dialects.document import RequestHead
from container.engine.sequence import Sampling
from container.errors import OutOfSpace, RequestError, TooLarge


class ReaderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader needs of the server. Lengths in tokens."""

    model_dir: str
    trust_remote_code: bool
    max_sequence_tokens: int
    default_max_new_tokens: int
    name: str
    """The served model's."""


class ReadDocument(msgspec.Struct, frozen=True, tag="document"):
    """The whole body is one document."""

    head: RequestHead


class ReadLine(msgspec.Struct, frozen=True, tag="line"):
    """Line `number` of JSON lines: `size` bytes of the body from `offset` on."""

    number: int
    offset: int
    size: int


class Load(msgspec.Struct, frozen=True, tag="load"):
    """The first message: get ready, without looking at the document."""

    config: ReaderConfig


class Open(msgspec.Struct, frozen=True, tag="open"):
    """The second: read it. `place` is a line's in its batch, counted from 0: with `seeds` it gives the items theirs."""

    what: ReadDocument | ReadLine
    seeds: Seeds
    place: int = 0


class Get(msgspec.Struct, frozen=True, tag="get"):
    """Item `index`, prepared."""

    index: int


class Put(msgspec.Struct, frozen=True, tag="put"):
    """One more completion of item `index`. An item's come in order."""

    index: int
    prompt_tokens: int
    completion: Completion


class Render(msgspec.Struct, frozen=True, tag="render"):
    """All completions are there: write the answer."""


class Refuse(msgspec.Struct, frozen=True, tag="refuse"):
    """Write a line's answer that says this error."""

    error: Failure


ToReader = Load | Open | Get | Put | Render | Refuse


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """A RequestError."""

    status: int
    kind: str
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
    """The reader's last word: an error that nobody thought of, told without what it was at work on."""

    cause: str


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The document is well-formed, and every item fits. A line may already be an error."""

    items: int
    form: Form = "bare"
    custom_id: str | None = None
    error: Failure | None = None


class Item(msgspec.Struct, frozen=True, tag="item"):
    """A `Prepared` without its text."""

    prompt_ids: list[int]
    samplings: tuple[Sampling, ...]
    stop: tuple[str, ...]
    has_random_seed: bool


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Nothing to say but that it is."""


class Rendered(msgspec.Struct, frozen=True, tag="rendered"):
    """The answer's file holds the whole answer."""

    size: int
    content_type: str


ToEdge = Opened | Failure | Broken | Item | Done | Rendered


def too_much_memory() -> TooLarge:
    """What becomes of a document that its reader has no memory for."""
    message = "the document takes too much memory to read; send JSON lines (application/jsonlines) with smaller items"
    return TooLarge(message, code="document_too_complex")


to_reader = msgspec.msgpack.Decoder(ToReader)
to_edge = msgspec.msgpack.Decoder(ToEdge)
