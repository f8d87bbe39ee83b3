"""The reader process: `python -m container.reader.process SOCKET BODY ANSWER`, three inherited file descriptors.

It reads one document from the body's file, gives its items when asked, takes their completions, and writes the answer
to its file. It lives as long as its document, or until the server is gone. It logs nothing: the server does.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
from setproctitle import setproctitle

from container.core import Call, Completion, Result, Seeds
from container.dialects.batch import Line, read_line
from container.dialects.document import read_call
from container.disk.full_disk import naming_a_full_disk
from container.errors import RequestError
from container.processes.child_process import encode, read_frames
from container.processes.parent_death import die_with_parent
from container.reader.messages import (
    Broken,
    Done,
    Failure,
    Get,
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
    ToReader,
    ToServer,
    to_reader,
    too_much_memory,
)
from container.tokenization.model_defaults import ModelDefaults
from container.tokenization.preparer import Prepared, Preparer, unstarted_completions
from container.tokenization.tokenizer import Tokenizer

_BASE_MEMORY_BYTES = 256 << 20
_MEMORY_PER_BYTE = 16
"""Most that decoded JSON takes, in reason: a list of small integers 8 bytes for 2, text with an emoji 4 for 1."""


class Document:
    """Owns the items of the document and the completions that have come so far."""

    def __init__(self, call: Call, preparer: Preparer, name: str, seeds: Seeds, line: int) -> None:
        """Prepare all items before any runs. Raises InvalidRequest if one of them can't be served."""
        self._call = call
        self._name = name
        self._items = [preparer.prepare(item, seeds.seed(line, index)) for index, item in enumerate(call.items)]
        self._completions: dict[int, list[Completion]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def content_type(self) -> str:
        return self._call.content_type

    def item(self, index: int) -> Prepared:
        """Return an item for the server, which has no use for its text."""
        return msgspec.structs.replace(self._items[index], prompt_text="")

    def put(self, message: Put) -> None:
        self._completions[message.index].append(message.completion)

    def results(self) -> list[Result]:
        """Return the items' results. One without completions was never asked for: the deadline came first."""
        return [
            Result(
                prompt_text=item.prompt_text,
                prompt_tokens=len(item.prompt_ids),
                completions=tuple(self._completions[index]) or unstarted_completions(item.samplings),
            )
            for index, item in enumerate(self._items)
        ]

    def answer(self) -> bytes:
        return self._call.render(self.results(), self._name)

    def line_answer(self, line: Line) -> bytes:
        return line.success(self.results(), self._name)


class Reader:
    """Answers the server's questions, one after the other."""

    def __init__(self, body: int, answer: int) -> None:
        """Take the file descriptors of the two files."""
        self._body = body
        self._answer = answer
        self._config: ReaderConfig | None = None
        self._preparer: Preparer | None = None
        self._document: Document | None = None
        self._line: Line | None = None

    def reply_to(self, message: ToReader) -> ToServer:
        """Carry out a question and return its answer. Raises RequestError, MemoryError."""
        match message:
            case Load(config):
                self._load(config)
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

    def _load(self, config: ReaderConfig) -> None:
        defaults = ModelDefaults.load(config.model_dir)
        self._config = config
        self._preparer = Preparer(
            tokenizer=Tokenizer.load(
                config.model_dir, trust_remote_code=config.trust_remote_code, vocab_size=defaults.vocab_size
            ),
            defaults=defaults,
            max_sequence_tokens=config.max_sequence_tokens,
            default_max_new_tokens=config.default_max_new_tokens,
        )

    @property
    def _opened(self) -> Document:
        assert self._document is not None, "it is opened first"
        return self._document

    def _open(self, message: Open) -> Opened:
        source = message.source
        size = source.size if isinstance(source, ReadLine) else os.fstat(self._body).st_size
        with _memory_limit(_BASE_MEMORY_BYTES + _MEMORY_PER_BYTE * size):
            match source:
                case ReadDocument():
                    body = self._read(0, size)
                    self._prepare(read_call(source.head, body), message)
                    return Opened(len(self._opened))
                case ReadLine():
                    return self._open_line(read_line(self._read(source.offset, size), source.number), message)

    def _open_line(self, line: Line, message: Open) -> Opened:
        self._line, error = line, line.error
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
        self._document = Document(call, self._preparer, self._config.name, message.seeds, message.line)

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


@contextlib.contextmanager
def _memory_limit(more: int) -> Iterator[None]:
    """Let the process take `more` bytes at most beyond what it has by now, the model's tokenizer included."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (psutil.Process().memory_info().data + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def answer(reader: Reader, message: ToReader) -> ToServer:
    """Return the reader's answer, which is Broken after an unexpected error."""
    try:
        return reader.reply_to(message)
    except RequestError as error:
        return Failure.of(error)
    except MemoryError:
        return Failure.of(too_much_memory())
    except BaseException as error:  # a panic of Rust's is not an Exception, and its message could quote the document
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        return Broken(f"{type(error).__name__} at {Path(frame.f_code.co_filename).name}:{line}")


def main() -> None:
    die_with_parent()
    setproctitle("longhaul-reader")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the server's to handle
    # If the container runs out of memory, this is the process to go first (proc(5), oom_score_adj).
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    link, body_file, answer_file = map(int, sys.argv[1:])
    reader = Reader(body_file, answer_file)
    with socket.socket(fileno=link) as sock, sock.makefile("rb") as stream:
        for frame in read_frames(stream):
            reply = answer(reader, to_reader.decode(frame))
            sock.sendall(encode(reply))
            if isinstance(reply, Broken):
                sys.exit(1)


if __name__ == "__main__":
    main()
