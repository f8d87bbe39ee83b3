"""The reader process: `python -m container.reader.process SOCKET BODY ANSWER`, three inherited file descriptors.

Reads one document from the body's file, gives its items when asked, takes their results, and writes the answer to its
file. Lives as long as its document, or until the edge is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from setproctitle import setproctitle

from ..defaults import Defaults
from ..dialects.batch import Line, read_line
from ..dialects.call import Call
from ..dialects.document import read_call
from ..engine.messages import HEADER, encode
from ..engine.process import die_with_parent
from ..errors import RequestError
from ..generation import Result
from ..preparation import Preparer
from ..telemetry import configure_logging
from ..tokenizer import Tokenizer
from .messages import (
    Failure,
    Get,
    Item,
    Open,
    Opened,
    Put,
    ReadDocument,
    ReaderConfig,
    ReadLine,
    Refuse,
    Render,
    Rendered,
    Taken,
    ToEdge,
    ToReader,
    to_reader,
    too_much_memory,
)

logger = logging.getLogger(__name__)

_MEMORY_BYTES = 512 << 20
_MEMORY_PER_BYTE = 16
"""What decoded JSON takes at most, in reason: a list of small integers 8 bytes for 2, text with an emoji 4 for 1."""


class Document:
    """Owns the items of the document and the results that have come so far."""

    def __init__(self, call: Call, preparer: Preparer, name: str) -> None:
        """Raises InvalidRequest if an item can't be served: all are checked before any runs."""
        self._call = call
        self.name = name
        self._texts: list[str] = []
        self._items: list[bytes] = []  # encoded: a list of ids would take ten times the memory
        self._results: list[Result | None] = [None] * len(call.items)
        for item in call.items:
            prepared = preparer.prepare(item)
            self._texts.append(prepared.prompt_text)
            self._items.append(encode(Item(prepared.prompt_ids.tolist(), prepared.samplings, prepared.stop)))

    def __len__(self) -> int:
        return len(self._items)

    @property
    def content_type(self) -> str:
        return self._call.content_type

    def item(self, index: int) -> bytes:
        """The encoded `Item`."""
        return self._items[index]

    def put(self, index: int, result: Result) -> None:
        self._results[index] = replace(result, prompt_text=self._texts[index])

    @property
    def results(self) -> list[Result]:
        return [result for result in self._results if result is not None]

    def answer(self) -> bytes:
        return self._call.answer(self.results, self.name)


def main() -> None:
    die_with_parent()
    setproctitle("longhaul-reader")
    configure_logging("WARNING")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the edge's to handle
    # If the container runs out of memory, this is the process to go first (proc(5), oom_score_adj).
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    link, body, answer = (int(number) for number in sys.argv[1:])
    with socket.socket(fileno=link) as sock, sock.makefile("rb") as stream, os.fdopen(answer, "wb") as file:
        try:
            Reader(sock, stream, body, file).run()
        except Exception:
            logger.exception("the reader failed")
            sys.exit(1)


class Reader:
    """Answers the edge's questions, one after the other."""

    def __init__(self, sock: socket.socket, stream: BinaryIO, body: int, answer: BinaryIO) -> None:
        self._socket = sock
        self._stream = stream
        self._body = body
        self._answer = answer
        self._document: Document | None = None
        self._line: Line | None = None

    def run(self) -> None:
        while (message := self._receive()) is not None:
            try:
                reply = self._reply(message)
            except RequestError as error:
                reply = Failure.of(error)
            except MemoryError:
                reply = Failure.of(too_much_memory())
            self._socket.sendall(reply if isinstance(reply, bytes) else encode(reply))

    def _receive(self) -> ToReader | None:
        header = self._stream.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        (length,) = HEADER.unpack(header)
        message: ToReader = to_reader.decode(self._stream.read(length))
        return message

    def _reply(self, message: ToReader) -> ToEdge | bytes:
        match message:
            case Open():
                return self._open(message)
            case Get():
                return self._opened.item(message.index)
            case Put():
                self._opened.put(message.index, message.result)
                return Taken()
            case Render():
                return self._write(self._rendered(), self._opened.content_type)
            case Refuse():
                assert self._line is not None
                return self._write(self._line.failure(message.error.error()), "")

    @property
    def _opened(self) -> Document:
        assert self._document is not None, "the first message opens it"
        return self._document

    def _open(self, message: Open) -> Opened:
        match message.what:
            case ReadDocument() as what:
                preparer = _preparer(message.config, os.fstat(self._body).st_size)
                body = os.pread(self._body, os.fstat(self._body).st_size, 0)
                call = read_call(what.route, what.content_type, body, what.custom_attributes)
                self._document = Document(call, preparer, message.config.name)
                return Opened(len(self._document))
            case ReadLine() as what:
                return self._open_line(what, _preparer(message.config, what.size), message.config.name)

    def _open_line(self, what: ReadLine, preparer: Preparer, name: str) -> Opened:
        line = self._line = read_line(os.pread(self._body, what.size, what.offset), what.number)
        error, items = line.error, 0
        if line.call is not None:
            try:
                self._document = Document(line.call, preparer, name)
                items = len(self._document)
            except RequestError as refusal:
                error = refusal
        return Opened(items, line.unique_id, None if error is None else Failure.of(error))

    def _rendered(self) -> bytes:
        if self._line is None:
            return self._opened.answer()
        return self._line.success(self._opened.results, self._opened.name)

    def _write(self, answer: bytes, content_type: str) -> Rendered:
        self._answer.write(answer)
        self._answer.flush()
        return Rendered(len(answer), content_type)


def _preparer(config: ReaderConfig, size: int) -> Preparer:
    limit = _MEMORY_BYTES + _MEMORY_PER_BYTE * size
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    defaults = Defaults.load(config.model_dir)
    tokenizer = Tokenizer.load(
        config.model_dir, trust_remote_code=config.trust_remote_code, vocab_size=defaults.vocab_size
    )
    return Preparer(
        tokenizer=tokenizer,
        defaults=defaults,
        max_sequence_tokens=config.max_sequence_tokens,
        default_max_new_tokens=config.default_max_new_tokens,
    )


if __name__ == "__main__":
    main()
