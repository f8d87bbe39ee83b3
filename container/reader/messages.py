"""What edge and reader say to each other: msgpack structs, length-prefixed as between edge and engine. The edge asks,
the reader answers each question once, in order."""

from __future__ import annotations

import msgspec

from ..dialects.document import Route
from ..engine.sequence import Sampling
from ..errors import RequestError, TooLarge
from ..generation import Result


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

    route: Route
    content_type: str | None
    custom_attributes: str | None


class ReadLine(msgspec.Struct, frozen=True, tag="line"):
    """Line `number` of JSON lines: `size` bytes of the body from `offset` on."""

    number: int
    offset: int
    size: int


class Open(msgspec.Struct, frozen=True, tag="open"):
    """The first message."""

    config: ReaderConfig
    what: ReadDocument | ReadLine


class Get(msgspec.Struct, frozen=True, tag="get"):
    """Item `index`, prepared."""

    index: int


class Put(msgspec.Struct, frozen=True, tag="put"):
    """What became of item `index`; its `prompt_text` is left out."""

    index: int
    result: Result


class Render(msgspec.Struct, frozen=True, tag="render"):
    """All results are there: write the answer."""


class Refuse(msgspec.Struct, frozen=True, tag="refuse"):
    """Write a line's answer that says this error."""

    error: Failure


ToReader = Open | Get | Put | Render | Refuse


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
        error = RequestError(self.message, param=self.param, code=self.code)
        error.status, error.type = self.status, self.kind
        return error


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The document is well-formed, and every item fits. A line may have a name that is to be its own, and may already
    be an error."""

    items: int
    unique_id: str | None = None
    error: Failure | None = None


class Item(msgspec.Struct, frozen=True, tag="item"):
    """A `Prepared` without its text."""

    prompt_ids: list[int]
    samplings: tuple[Sampling, ...]
    stop: tuple[str, ...]


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """The result is kept."""


class Rendered(msgspec.Struct, frozen=True, tag="rendered"):
    """The answer's file holds the whole answer."""

    size: int
    content_type: str


ToEdge = Opened | Failure | Item | Taken | Rendered


def too_much_memory() -> TooLarge:
    """What becomes of a document that its reader has no memory for."""
    message = "the document takes too much memory to read; send JSON lines (application/jsonlines) with smaller items"
    return TooLarge(message, code="document_too_complex")


to_reader = msgspec.msgpack.Decoder(ToReader)
to_edge = msgspec.msgpack.Decoder(ToEdge)
