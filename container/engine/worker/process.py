"""The engine process: `python -m container.engine.worker.process FD`, where FD is its end of the server's socket pair.

It loads the model, then turns `Submit`s into tokens until the server is gone. It may die at any moment: all that it
knows, the server knows too.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time

from setproctitle import setproctitle

from container.engine.messages import (
    Cancel,
    Configure,
    Crashed,
    EngineConfig,
    Log,
    Ready,
    Refused,
    Submit,
    to_engine,
)
from container.processes.child_process import encode, read_frames
from container.processes.heap import start_trimmer
from container.processes.parent_death import die_with_parent


class Link:
    """The engine's end of the socket pair. Any thread may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._send_lock = threading.Lock()
        self.received: queue.SimpleQueue[Configure | Submit | Cancel] = queue.SimpleQueue()

    def send(self, message: object) -> None:
        """Send a message. Raises OSError if the server is gone."""
        with self._send_lock:
            self._socket.sendall(encode(message))

    def receive_forever(self) -> None:
        """Put what the server sends into `received`. End the process when the server is gone, even amid a step."""
        try:
            for frame in read_frames(self._socket.makefile("rb", buffering=1 << 20)):
                self.received.put(to_engine.decode(frame))
        except OSError:
            pass
        except Exception as error:
            crash(self, error)
        os._exit(0)


class LinkHandler(logging.Handler):
    """Sends log records to the server, which writes them as JSON lines with its own."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._link.send(Log(record.levelno, record.name, self.format(record)))
        except OSError:
            pass  # the server is gone, and soon this process
        except Exception:
            self.handleError(record)  # a bad record must not take its caller down


def run(link: Link, config: EngineConfig) -> None:
    """Load the model, then serve it until the process ends."""
    started = time.monotonic()
    # A sixth of the import's time would go into garbage collections that free next to nothing.
    gc.disable()
    import torch
    from transformers.utils import logging as transformers_logging

    from container.engine.worker.batch import Batch
    from container.engine.worker.model import load
    from container.engine.worker.refusal import ModelRefused
    from container.engine.worker.self_check import check_tokens

    gc.freeze()  # later collections leave out what the libraries have made
    gc.enable()

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    batching_logger = logging.getLogger("ContinuousBatchingLogger")  # has a handler of its own, and is verbose
    batching_logger.handlers.clear()
    batching_logger.propagate = True
    batching_logger.setLevel(logging.WARNING)
    torch.set_grad_enabled(False)
    try:
        loaded = load(config)
        batch = Batch(loaded, config, on_step=link.send, on_crash=lambda error: crash(link, error))
        if not loaded.is_measured:
            check_tokens(batch, loaded, batch.info(loaded, 0.0).max_sequence_tokens)
    except ModelRefused as refusal:
        link.send(Refused(str(refusal)))
        sys.exit(1)
    link.send(Ready(batch.info(loaded, time.monotonic() - started)))
    batch.start()
    start_trimmer()
    while True:
        match link.received.get():
            case Submit() as message:
                batch.submit(message)
            case Cancel() as message:
                batch.cancel(message)
            case Configure():
                raise RuntimeError("configured twice")


def crash(link: Link, error: BaseException) -> None:
    """Report the error and end the process: a half-dead engine is worth less than a new one."""
    logging.getLogger(__name__).error("the engine failed", exc_info=error)
    with contextlib.suppress(OSError):
        link.send(Crashed(f"{type(error).__name__}: {error}"))
    os._exit(1)


def main() -> None:
    die_with_parent()
    setproctitle("longhaul-engine")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the server's to handle
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    threading.Thread(target=link.receive_forever, name="receiver", daemon=True).start()
    first = link.received.get()
    if not isinstance(first, Configure):
        raise RuntimeError("the first message must configure the engine")
    logging.basicConfig(level=first.config.log_level, handlers=[LinkHandler(link)], force=True)
    try:
        run(link, first.config)
    except Exception as error:
        crash(link, error)


if __name__ == "__main__":
    main()
