"""`python -m container`: the first lines answer signals, the rest is the server process."""

import os
import signal
import sys
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)  # nothing has been promised to anyone yet


_NUMBERS = (signal.SIGTERM, signal.SIGINT)
for _number in _NUMBERS:
    signal.signal(_number, _leave)
signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)  # as process 1, ./serve has blocked them until here

import logging  # noqa: E402
import socket  # noqa: E402


def _bind(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    # Listening at once: a connection made while the rest is imported waits instead of being refused.
    sock.listen(2048)
    return sock


def main(root: str = "/") -> int:
    """The exit status. `root` is the file system in which the GPU's driver is looked for."""
    from container.settings import BadSetting, Settings

    try:
        settings = Settings.from_env(os.environ)
        sock = _bind(settings.host, settings.port)
    except BadSetting as error:
        return _refuse(str(error))
    except (OSError, UnicodeError) as error:  # UnicodeError: no host is called like this
        return _refuse(f"can't listen on {settings.host}:{settings.port}: {error}")

    import uvloop

    from container.server.serve import serve
    from container.startup.gpu_driver import UnfitDriver, check
    from container.startup.model_source import find_model
    from container.telemetry.json_logs import configure_logging

    configure_logging(settings.log_level)
    try:
        model = find_model(settings)
        driver = check(settings.device, root=root)
    except (BadSetting, UnfitDriver) as error:
        return _refuse(str(error))
    # Not uvloop.run: at its end it would wait for threads, such as one that fetches a model.
    return uvloop.new_event_loop().run_until_complete(serve(settings, model, sock, driver))


def _refuse(reason: str) -> int:
    from container.telemetry.json_logs import configure_logging

    configure_logging("INFO")
    logging.getLogger("container").error(reason, extra={"action": "refused"})
    return 1


if __name__ == "__main__":
    try:
        status = main()
    except Exception:
        logging.getLogger("container").exception("the server failed", extra={"action": "failed"})
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Worker threads may still be in a library call; nothing of theirs is wanted.
    os._exit(status)
