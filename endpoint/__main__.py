"""`python -m endpoint up|down`: SageMaker's asynchronous inference on this machine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from endpoint.settings import Settings
from endpoint.terminal import Terminal, TerminalHandler

_LAST_LINES_TIMEOUT_S = 1.0

DEFAULTS = Settings(data_dir=Path(".endpoint"))


def main() -> NoReturn:
    """Run the command that the command line names, and end this process with its status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback if Ctrl-C comes before the command handles it
    parser = _parser()
    options = parser.parse_args()
    settings = replace(DEFAULTS, **{name: value for name, value in vars(options).items() if hasattr(DEFAULTS, name)})
    if unused := _unused_option(settings):
        parser.error(f"argument {unused}: not with --runner {settings.runner}")
    errors = Terminal(sys.stderr.fileno())
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[TerminalHandler(errors)],
        force=True,
    )
    for chatty in ("botocore", "urllib3", "aiohttp", "s3transfer"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    from endpoint import commands

    output = Terminal(sys.stdout.fileno())

    def leave(status: int) -> NoReturn:
        for terminal in (output, errors):
            terminal.close(_LAST_LINES_TIMEOUT_S)
        os._exit(status)

    try:
        if options.command == "down":
            asyncio.run(commands.down(options.data_dir, leave))
        else:
            commands.up(settings, output, leave)
    except commands.CannotRun as error:
        errors.put(f"endpoint: {error}")
    except Exception:
        logging.getLogger(__name__).exception("internal error")
    leave(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m endpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir",
        type=lambda text: Path(text).resolve(),
        default=str(DEFAULTS.data_dir),
        help="directory of everything that outlives a restart (%(default)s)",
    )
    up = commands.add_parser(
        "up",
        parents=[common],
        help="serve AWS's API until Ctrl-C, which ends all of it",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    port = _number("port", int, 1, 65535)
    up.add_argument("--port", type=port, default=DEFAULTS.port, help="port of AWS's API on 127.0.0.1")
    up.add_argument(
        "--backend", default=DEFAULTS.backend, help="S3, SNS, SQS and the rest: embedded, or the URL of another AWS"
    )
    up.add_argument("--region", default=DEFAULTS.region)
    up.add_argument("--account", type=_account, default=DEFAULTS.account)
    up.add_argument(
        "--time-scale",
        type=_number("time scale", float, 1, 1000),
        default=DEFAULTS.time_scale,
        help="divides the platform's own waiting (start-up window, TTL, metric periods)",
    )
    up.add_argument(
        "--runner",
        choices=["process", "docker", "podman"],
        default=DEFAULTS.runner,
        help="what an instance is: a process of --serve, or a container of the model's Image",
    )
    up.add_argument(
        "--limits",
        action="store_true",
        help="give containers the processors and the memory of their instance type, and no more",
    )
    up.add_argument(
        "--pull",
        choices=["never", "missing"],
        default=DEFAULTS.pull,
        help="which images the engine may fetch from a registry",
    )
    up.add_argument(
        "--serve", type=_command, default=shlex.join(DEFAULTS.serve), help="the command that an instance's process runs"
    )
    up.add_argument(
        "--concurrency",
        type=_number("concurrency", int, 1, 1000),
        metavar="1..1000",
        default=DEFAULTS.concurrency,
        help="concurrent invocations per instance if ClientConfig doesn't say",
    )
    up.add_argument(
        "--on-no-answer",
        choices=["fail", "redeliver"],
        default=DEFAULTS.on_no_answer,
        help="what happens to a request whose container died while it had it, or gave it up with 503 as it was ended",
    )
    up.add_argument(
        "--record-scaling",
        type=lambda text: str(Path(text).resolve()),
        metavar="FILE",
        help="a file to which each scaling decision is appended with all that went into it, as JSON lines",
    )
    commands.add_parser("down", parents=[common], help="end `up`, or what a killed one has left running")
    return parser


def _unused_option(settings: Settings) -> str | None:
    """Return an option that was given, and that the runner has no use for."""
    if settings.runner != "process":
        return None if settings.serve == DEFAULTS.serve else "--serve"
    if settings.limits:
        return "--limits"
    return None if settings.pull == DEFAULTS.pull else "--pull"


def _number(name: str, number: type[int] | type[float], low: int, high: int) -> Callable[[str], float]:
    def convert(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= (value := number(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"invalid {name} {text!r}: expected {low} to {high}")

    return convert


def _account(text: str) -> str:
    if not (text.isascii() and text.isdecimal() and len(text) == 12):
        raise argparse.ArgumentTypeError(f"invalid account {text!r}: expected 12 digits")
    return text


def _command(text: str) -> tuple[str, ...]:
    try:
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid command {text!r}: {error}") from error
    if not command:
        raise argparse.ArgumentTypeError("the command is empty")
    return command


if __name__ == "__main__":
    main()
