"""The reader process: `python -m container.reader.process SOCKET BODY ANSWER`, three inherited file descriptors.

It reads one document from the body's file, gives its items when asked, takes their completions, and writes the answer
to its file. It lives as long as its document, or until the server is gone. It logs nothing: the server does.
"""

from __future__ import annotations

import contextlib
import logging
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

from container.core import Call, Completion, DeadlineReason, Result
from container.dialects.batch import Line, read_line
from container.dialects.document import RequestHead, read_call
from container.disk.full_disk import naming_a_full_disk
from container.errors import RequestError
from container.processes.child_process import encode, read_frames
from container.processes.parent_death import die_with_parent
from container.reader import messages
from container.tokenization.model_defaults import ModelDefaults
from container.tokenization.preparer import Prepared, Preparer, unstarted_completions
from container.tokenization.tokenizer import Tokenizer

_BASE_MEMORY_BYTES = 256 << 20
_MEMORY_PER_BYTE = 16
"""Most that decoded JSON takes, in reason: a list of small integers 8 bytes for 2, text with an emoji 4 for 1."""


class Document:
    """Owns the items of the document and the completions that have come so far."""

    def __init__(self, call: Call, items: list[Prepared]) -> None:
        self.call = call
        self.items = items
        self.completions: dict[int, list[Completion]] = defaultdict(list)

    def results(self) -> list[Result]:
        """Return the items' results. One without completions was never asked for: the deadline came first."""
        return [
            Result(
                prompt_text=item.prompt_text,
                prompt_tokens=len(item.prompt_ids),
                completions=tuple(self.completions[index]) or unstarted_completions(item.samplings),
            )
            for index, item in enumerate(self.items)
        ]


class Reader:
    """Answers the server's questions, one after the other."""

    def __init__(self, body: int, answer: int) -> None:
        """Take the file descriptors of the two files."""
        self._body = body
        self._answer = answer
        self._name = ""
        self._deadline_reason: DeadlineReason = "deadline"
        self._preparer: Preparer | None = None
        self._document: Document | None = None
        self._line: Line | None = None

    def reply_to(self, message: messages.ToReader) -> messages.ToServer:
        """Carry out a question and return its answer. Raises RequestError, MemoryError."""
        match message:
            case messages.Load(config):
                self._load(config)
                return messages.Done()
            case messages.Open():
                return self._open(message)
            case messages.Get(index):
                return msgspec.structs.replace(self._opened.items[index], prompt_text="")
            case messages.Put(index, completion):
                self._opened.completions[index].append(completion)
                return messages.Done()
            case messages.Render(failure):
                return self._render(failure)

    def _load(self, config: messages.ReaderConfig) -> None:
        defaults = ModelDefaults.load(config.model_dir)
        self._name, self._deadline_reason = config.name, config.deadline_reason
        tokenizer = Tokenizer.load(
            config.model_dir,
            trust_remote_code=config.trust_remote_code,
            vocab_size=defaults.vocab_size,
            end_token_ids=defaults.eos_token_ids,
            parses_control_tokens=config.parses_control_tokens,
        )
        self._preparer = Preparer(
            tokenizer=tokenizer,
            defaults=defaults.with_end_token(tokenizer.end_token_id),
            max_sequence_tokens=config.max_sequence_tokens,
            default_max_new_tokens=config.default_max_new_tokens,
        )

    def _render(self, failure: messages.Failure | None) -> messages.Rendered:
        if failure is not None:
            assert self._line is not None, "only a line's answer says why it failed"
            return self._write(self._line.failure(failure.error()), "")
        results, call = self._opened.results(), self._opened.call
        render = call.render if self._line is None else self._line.success
        return self._write(render(results, self._name, self._deadline_reason), call.content_type)

    @property
    def _opened(self) -> Document:
        assert self._document is not None, "it is opened first"
        return self._document

    def _open(self, message: messages.Open) -> messages.Opened:
        source = message.source
        size = source.size if isinstance(source, messages.ReadLine) else os.fstat(self._body).st_size
        with _memory_limit(_BASE_MEMORY_BYTES + _MEMORY_PER_BYTE * size):
            match source:
                case RequestHead():
                    return messages.Opened(self._prepare(read_call(source, self._read(0, size)), message))
                case messages.ReadLine(number, offset):
                    line = self._line = read_line(self._read(offset, size), number)
                    try:
                        if line.error is not None:
                            raise line.error
                        items = 0 if line.call is None else self._prepare(line.call, message)
                    except RequestError as error:
                        return messages.Opened(0, line.form, line.custom_id, messages.Failure.of(error))
                    return messages.Opened(items, line.form, line.custom_id)

    def _prepare(self, call: Call, message: messages.Open) -> int:
        """Prepare all items before any runs and return their number. Raises InvalidRequest."""
        preparer, constants = self._preparer, message.constants
        assert preparer is not None, "it is loaded first"
        items = [
            preparer.prepare(item, constants.seed(message.line, index), constants.clock)
            for index, item in enumerate(call.items)
        ]
        self._document = Document(call, items)
        return len(items)

    def _read(self, offset: int, size: int) -> bytes:
        parts = []
        while size > 0 and (part := os.pread(self._body, size, offset)):  # 2 GiB at most are read at once
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def _write(self, answer: bytes, content_type: str) -> messages.Rendered:
        written = 0
        with naming_a_full_disk():
            while written < len(answer):
                written += os.pwrite(self._answer, memoryview(answer)[written:], written)
        return messages.Rendered(len(answer), content_type)


@contextlib.contextmanager
def _memory_limit(more: int) -> Iterator[None]:
    """Let the process take `more` bytes at most beyond what it has by now, the model's tokenizer included."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (psutil.Process().memory_info().data + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def answer(reader: Reader, message: messages.ToReader) -> messages.ToServer:
    """Return the reader's answer, which is Broken after an unexpected error."""
    try:
        return reader.reply_to(message)
    except RequestError as error:
        return messages.Failure.of(error)
    except MemoryError:
        return messages.Failure.of(messages.too_much_memory())
    except BaseException as error:  # a panic of Rust's is not an Exception, and its message could quote the document
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        return messages.Broken(f"{type(error).__name__} at {Path(frame.f_code.co_filename).name}:{line}")


def main() -> None:
    die_with_parent()
    setproctitle("longhaul-reader")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the server's to handle
    logging.disable()
    # If the container runs out of memory, this is the process to go first (proc(5), oom_score_adj).
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    link, body_file, answer_file = map(int, sys.argv[1:])
    reader = Reader(body_file, answer_file)
    with socket.socket(fileno=link) as sock, sock.makefile("rb") as stream:
        for frame in read_frames(stream):
            reply = answer(reader, messages.to_reader.decode(frame))
            sock.sendall(encode(reply))
            if isinstance(reply, messages.Broken):
                sys.exit(1)


if __name__ == "__main__":
    main()
