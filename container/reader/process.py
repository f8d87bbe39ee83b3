"""The reader process: `python -m container.reader.process SOCKET BODY ANSWER`, three inherited file descriptors.

Reads one document from the body's file, gives its items when asked, takes their completions, and writes the answer to
its file. Lives as long as its document, or until the edge is gone. It logs nothing: the edge says what there is to say.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import psutil
from setproctitle import setproctitle

from container.core import Call, Completion, Result, Seeds
from container.dialects.batch import Line, read_line
from container.dialects.document import read_call
from container.disk.spool import naming_a_full_disk
from container.engine.messages import HEADER, encode
from container.engine.worker.process import die_with_parent
from container.errors import RequestError
from container.reader.messages import (
    Broken,
    Done,
    Failure,
    Get,
    Item,
    Load,
    Open,
    Opened,
    Put,
    ReadDocument,
    ReaderConfig,
    ReadLine,
    Refuse,
    Render,
    Rendered,
    ToEdge,
    ToReader,
    to_edge,
    to_reader,
    too_much_memory,
)
from container.tokenization.model_defaults import Defaults
from container.tokenization.preparer import Preparer, unstarted
from container.tokenization.tokenizer import Tokenizer

_MEMORY_BYTES = 256 << 20
_MEMORY_PER_BYTE = 16
"""What decoded JSON takes at most, in reason: a list of small integers 8 bytes for 2, text with an emoji 4 for 1."""


class Document:
    """Owns the items of the document and the completions that have come so far."""

    def __init__(self, call: Call, preparer: Preparer, name: str, seeds: Seeds, place: int) -> None:
        """Raises InvalidRequest if an item can't be served: all are checked before any runs."""
        self._call = call
        self._name = name
        self._texts: list[str] = []
        self._items: list[bytes] = []  # encoded: a list of ids would take ten times the memory
        self._completions: dict[int, list[Completion]] = defaultdict(list)
        self._prompt_tokens: dict[int, int] = {}
        for index, item in enumerate(call.items):
            prepared = preparer.prepare(item, seeds.seed(place, index))
            self._texts.append(prepared.prompt_text)
            encoded = Item(prepared.prompt_ids.tolist(), prepared.samplings, prepared.stop, prepared.has_random_seed)
            self._items.append(encode(encoded))

    def __len__(self) -> int:
        return len(self._items)

    @property
    def content_type(self) -> str:
        return self._call.content_type

    def item(self, index: int) -> bytes:
        """The encoded `Item`."""
        return self._items[index]

    def put(self, message: Put) -> None:
        self._completions[message.index].append(message.completion)
        self._prompt_tokens[message.index] = message.prompt_tokens

    def results(self) -> list[Result]:
        return [self._result(index, text) for index, text in enumerate(self._texts)]

    def _result(self, index: int, text: str) -> Result:
        if index in self._completions:
            prompt_tokens, completions = self._prompt_tokens[index], tuple(self._completions[index])
        else:  # the deadline came before it was asked for
            item = to_edge.decode(self._items[index][HEADER.size :])
            assert isinstance(item, Item), "it was encoded as one"
            prompt_tokens, completions = len(item.prompt_ids), unstarted(item.samplings)
        return Result(prompt_text=text, prompt_tokens=prompt_tokens, completions=completions)

    def answer(self) -> bytes:
        return self._call.render(self.results(), self._name)

    def line_answer(self, line: Line) -> bytes:
        return line.success(self.results(), self._name)


def main() -> None:
    die_with_parent()
    setproctitle("longhaul-reader")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the edge's to handle
    # If the container runs out of memory, this is the process to go first (proc(5), oom_score_adj).
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    link, body, answer = (int(number) for number in sys.argv[1:])
    with socket.socket(fileno=link) as sock, sock.makefile("rb") as stream:
        Reader(sock, stream, body, answer).run()


class Reader:
    """Answers the edge's questions, one after the other."""

    def __init__(self, sock: socket.socket, stream: BinaryIO, body: int, answer: int) -> None:
        self._socket = sock
        self._stream = stream
        self._body = body
        self._answer = answer
        self._config: ReaderConfig | None = None
        self._preparer: Preparer | None = None
        self._document: Document | None = None
        self._line: Line | None = None

    def run(self) -> None:
        """Until the edge hangs up, or something breaks."""
        while (message := self._receive()) is not None:
            reply = self._reply_to(message)
            self._socket.sendall(reply if isinstance(reply, bytes) else encode(reply))
            if isinstance(reply, Broken):
                sys.exit(1)

    def _receive(self) -> ToReader | None:
        header = self._stream.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        (length,) = HEADER.unpack(header)
        message: ToReader = to_reader.decode(self._stream.read(length))
        return message

    def _reply_to(self, message: ToReader) -> ToEdge | bytes:
        try:
            return self._reply(message)
        except RequestError as error:
            return Failure.of(error)
        except MemoryError:
            return Failure.of(too_much_memory())
        except BaseException as error:  # Rust's panics are no Exceptions
            return Broken(_place(error))

    def _reply(self, message: ToReader) -> ToEdge | bytes:
        match message:
            case Load():
                self._config, self._preparer = message.config, _preparer(message.config)
                return Done()
            case Open():
                return self._open(message)
            case Get():
                return self._opened.item(message.index)
            case Put():
                self._opened.put(message)
                return Done()
            case Render():
                line, document = self._line, self._opened
                answer = document.answer() if line is None else document.line_answer(line)
                return self._write(answer, document.content_type)
            case Refuse():
                assert self._line is not None, "only a line's answer says why it failed"
                return self._write(self._line.failure(message.error.error()), "")

    @property
    def _opened(self) -> Document:
        assert self._document is not None, "it is opened first"
        return self._document

    def _open(self, message: Open) -> Opened:
        what = message.what
        size = what.size if isinstance(what, ReadLine) else os.fstat(self._body).st_size
        with _memory_limit(_MEMORY_BYTES + _MEMORY_PER_BYTE * size):
            match what:
                case ReadDocument():
                    body = self._read(0, size)
                    self._prepare(read_call(what.head, body), message)
                    return Opened(len(self._opened))
                case ReadLine():
                    return self._open_line(read_line(self._read(what.offset, size), what.number), message)

    def _open_line(self, line: Line, message: Open) -> Opened:
        self._line = line
        error = line.error
        try:
            if line.call is not None:
                self._prepare(line.call, message)
        except RequestError as refusal:
            error = refusal
        if error is not None:
            return Opened(0, line.form, line.custom_id, Failure.of(error))
        return Opened(len(self._opened), line.form, line.custom_id)

    def _prepare(self, call: Call, message: Open) -> None:
        assert self._config is not None and self._preparer is not None, "Load comes first"
        self._document = Document(call, self._preparer, self._config.name, message.seeds, message.place)

    def _read(self, offset: int, size: int) -> bytes:
        parts = []
        while size > 0 and (part := os.pread(self._body, size, offset)):  # 2 GiB at most are read at once
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def _write(self, answer: bytes, content_type: str) -> Rendered:
        written = 0
        with naming_a_full_disk():
            while written < len(answer):
                written += os.pwrite(self._answer, memoryview(answer)[written:], written)
        return Rendered(len(answer), content_type)


def _preparer(config: ReaderConfig) -> Preparer:
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


@contextlib.contextmanager
def _memory_limit(more: int) -> Iterator[None]:
    """At most so many bytes beyond what the process has by now, the model's tokenizer with it."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (psutil.Process().memory_info().data + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _place(error: BaseException) -> str:
    """Where it happened. Its own words could quote the document."""
    place, traceback = "", error.__traceback__
    while traceback is not None:
        place = f"{Path(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return f"{type(error).__name__} at {place}"


if __name__ == "__main__":
    main()
