"""The engine process: `python -m container.engine.worker.process FD`, FD being its end of the edge's socket pair.

Loads the model, then turns `Submit`s into tokens until the edge is gone. It may die at any moment: whatever it
knows, the edge knows too.
"""

from __future__ import annotations

import contextlib
import ctypes
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
    HEADER,
    Cancel,
    Configure,
    Crashed,
    EngineConfig,
    Log,
    Ready,
    Refused,
    Submit,
    encode,
    to_engine,
)
from container.processes.heap import start_trimmer

_PR_SET_PDEATHSIG = 1


class Link:
    """The engine's end of the socket. Any thread may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self.received: queue.SimpleQueue[Configure | Submit | Cancel] = queue.SimpleQueue()

    def send(self, message: object) -> None:
        with self._sending:
            self._socket.sendall(encode(message))

    def receive_forever(self) -> None:
        """Ends the process when the edge is gone, whatever else it is doing."""
        stream = self._socket.makefile("rb", buffering=1 << 20)
        try:
            while len(header := stream.read(HEADER.size)) == HEADER.size:
                (length,) = HEADER.unpack(header)
                body = stream.read(length)
                if len(body) < length:  # the edge died in the middle of it
                    break
                self.received.put(to_engine.decode(body))
        except OSError:
            pass
        except Exception as error:
            crash(self, error)
        os._exit(0)


class LinkHandler(logging.Handler):
    """Log records go to the edge, which writes them as JSON lines with its own."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._link.send(Log(record.levelno, record.name, self.format(record)))
        except OSError:
            pass  # the edge is gone, and soon this process
        except Exception:
            self.handleError(record)  # a bad record must not take its caller down


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run(link: Link, config: EngineConfig) -> None:
    """Load, then serve until the process ends."""
    started = time.monotonic()
    import torch
    from transformers.utils import logging as transformers_logging

    from container.engine.worker.batch import Batch
    from container.engine.worker.model import ModelRefused, load

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    batching_logger = logging.getLogger("ContinuousBatchingLogger")  # has a handler of its own, and chatters
    batching_logger.handlers.clear()
    batching_logger.propagate = True
    batching_logger.setLevel(logging.WARNING)
    torch.set_grad_enabled(False)
    try:
        loaded = load(config)
        batch = Batch(loaded, config, on_step=link.send, on_crash=lambda error: crash(link, error))
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
    """Say why, and end: a half-dead engine is worth less than a new one."""
    logging.getLogger(__name__).error("the engine failed", exc_info=error)
    with contextlib.suppress(OSError):
        link.send(Crashed(f"{type(error).__name__}: {error}"))
    os._exit(1)


def main() -> None:
    die_with_parent()
    setproctitle("longhaul-engine")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the edge's to handle
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
